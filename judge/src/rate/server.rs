//! The page's server. Whoever has no link learns nothing, not even what is wrong with the one they tried.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rand::RngExt;
use serde::Deserialize;

use super::store::{Rater, Store, StoreError};

const PAGE: &str = include_str!("page.html");

/// The routes: `/r/TOKEN` is a person's page, and what lies below it is what the page asks for.
pub fn router(store: Arc<Store>) -> Router {
    Router::new()
        .route("/r/{token}", get(page_of_rater))
        .route("/r/{token}/standing", get(standing))
        .route("/r/{token}/page/{page}", get(page))
        .route("/r/{token}/mark", post(mark))
        .route("/r/{token}/undo", post(undo))
        .fallback(|| async { Refusal(StoreError::Unknown) })
        .with_state(store)
}

/// Serves until the program ends.
///
/// # Errors
/// What the listener says.
pub async fn serve(store: Arc<Store>, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    axum::serve(listener, router(store)).await
}

/// Serves until the program is interrupted, and then answers what has been asked.
///
/// # Errors
/// What the listener says.
pub fn serve_until_interrupted(store: Arc<Store>, listener: std::net::TcpListener) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let interrupted = async {
            // Where no signal can be listened for, the signal still ends the program.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        axum::serve(listener, router(store)).with_graceful_shutdown(interrupted).await
    })
}

struct Refusal(StoreError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self.0 {
            StoreError::Unknown => (StatusCode::NOT_FOUND, "There is no such page.").into_response(),
            StoreError::Mark(_) => (StatusCode::UNPROCESSABLE_ENTITY, self.0.to_string()).into_response(),
            error => {
                // Paths and database errors are for whoever runs the server.
                tracing::error!("{error}");
                (StatusCode::INTERNAL_SERVER_ERROR, "The mark was not saved.").into_response()
            }
        }
    }
}

/// Finds the person and does the work away from the threads that serve: SQLite waits for the disk.
async fn for_rater<T: Send + 'static>(
    store: Arc<Store>,
    token: String,
    work: impl FnOnce(&Store, &Rater) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || {
        let rater = store.rater(&token)?;
        work(&store, &rater)
    });
    done.await.unwrap_or(Err(StoreError::Unknown)).map_err(Refusal)
}

fn private(response: impl IntoResponse) -> Response {
    let mut response = response.into_response();
    let headers = response.headers_mut();
    // The address is the key: it must not be handed on, nor the marks kept by anything on the way.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn page_of_rater(
    State(store): State<Arc<Store>>,
    Path(token): Path<String>,
) -> Result<Response, Refusal> {
    for_rater(store, token, |_, _| Ok(())).await?;
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = private(axum::response::Html(PAGE.replace("NONCE", &nonce)));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    Ok(response)
}

async fn standing(State(store): State<Arc<Store>>, Path(token): Path<String>) -> Result<Response, Refusal> {
    Ok(private(Json(for_rater(store, token, Store::standing).await?)))
}

async fn page(
    State(store): State<Arc<Store>>,
    Path((token, page)): Path<(String, usize)>,
) -> Result<Response, Refusal> {
    Ok(private(Json(for_rater(store, token, move |store, rater| store.page(rater, page)).await?)))
}

#[derive(Deserialize)]
struct Mark {
    handle: String,
    mark: f64,
}

async fn mark(
    State(store): State<Arc<Store>>,
    Path(token): Path<String>,
    Json(mark): Json<Mark>,
) -> Result<Response, Refusal> {
    let standing = for_rater(store, token, move |store, rater| {
        store.mark(rater, &mark.handle, mark.mark)?;
        store.standing(rater)
    });
    Ok(private(Json(standing.await?)))
}

async fn undo(State(store): State<Arc<Store>>, Path(token): Path<String>) -> Result<Response, Refusal> {
    let page = for_rater(store, token, Store::undo).await?;
    Ok(private(Json(serde_json::json!({ "page": page }))))
}
