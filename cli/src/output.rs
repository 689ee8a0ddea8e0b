//! Results on standard output, messages on standard error.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::arguments::Color;

/// How a command speaks.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    color: bool,
    /// Another process of the same command tells what there is to tell.
    quiet: bool,
}

impl Output {
    pub(crate) fn new(color: Color, json: bool) -> Self {
        Self { json, color: colored(color), quiet: false }
    }

    /// The same for a process of whose command another one tells: errors alone are told.
    pub(crate) fn quiet(&self) -> Self {
        Self { quiet: true, ..*self }
    }

    /// Whether a result is to be one JSON object.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// A line of the result.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{}", text.as_ref())
    }

    /// The result as one JSON object.
    pub(crate) fn object(&self, value: &impl serde::Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        self.line(text)
    }

    /// Something to know that stops nothing.
    pub(crate) fn warning(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.message("warning", "33", text.as_ref());
        }
    }

    /// What is being done, and how far it is, where there is no bar to show it.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            // A terminal that is gone is told nothing; the work goes on.
            let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// Why the command ended early, with its causes.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let mut told = error.to_string();
        self.message("error", "31", &told);
        for cause in error.chain().skip(1) {
            // Many an error's own words end in those of its cause.
            let cause = cause.to_string();
            if !told.ends_with(&cause) {
                self.cause(&cause);
            }
            told = cause;
        }
    }

    fn cause(&self, text: &str) {
        let (before, after) = self.colors("31");
        // A terminal that is gone is told nothing; the exit code still says what happened.
        let _ = writeln!(io::stderr().lock(), "  {before}Caused by{after}: {text}");
    }

    fn message(&self, kind: &str, color: &str, text: &str) {
        let (before, after) = self.colors(color);
        let _ = writeln!(io::stderr().lock(), "{before}{kind}{after}: {text}");
    }

    fn colors(&self, color: &str) -> (String, &str) {
        if self.color { (format!("\x1b[1;{color}m"), "\x1b[0m") } else { (String::new(), "") }
    }
}

/// Messages of the rooms: warnings unless POLYPACA_LOG says otherwise.
pub(crate) fn log(color: Color) {
    let filter = EnvFilter::try_from_env("POLYPACA_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,usvg=error,resvg=error,tiny_skia=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Else a message that cannot be written would be told of on standard error, with a panic where that is full.
        .log_internal_errors(false)
        .event_format(LikeOutput { color: colored(color) })
        .init();
}

/// Messages of the rooms, in the form of the program's own.
struct LikeOutput {
    color: bool,
}

impl<S, N> FormatEvent<S, N> for LikeOutput
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (kind, color) = match *event.metadata().level() {
            Level::ERROR => ("error", "31"),
            Level::WARN => ("warning", "33"),
            Level::INFO => ("note", "32"),
            Level::DEBUG => ("debug", "34"),
            Level::TRACE => ("trace", "35"),
        };
        let (before, after) =
            if self.color { (format!("\x1b[1;{color}m"), "\x1b[0m") } else { (String::new(), "") };
        write!(writer, "{before}{kind}{after}: ")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

fn colored(color: Color) -> bool {
    let off = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => !off && io::stderr().is_terminal(),
    }
}
