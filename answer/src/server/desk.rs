//! Where all connections' requests meet: one scheduler, on the thread that has the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use engine::kernels::Kernels;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use crate::answer_model::AnswerModel;
use crate::error::Error;
use crate::request::{Answer, Request};
use crate::scheduler::{Event, Limits, Scheduler};
use crate::settings::Decoding;

/// What a connection hears of its request.
#[derive(Debug)]
pub(super) enum News {
    /// The next token.
    Token(u32),
    /// The whole answer; nothing follows.
    Finished(Answer),
    /// There is none; nothing follows.
    Failed(Error),
}

/// A request, and who waits for it. Whoever drops the other end has hung up.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) decoding: Arc<Decoding>,
    /// Which of a call's choices it is.
    pub(super) choice: usize,
    pub(super) listener: UnboundedSender<(usize, News)>,
    /// Its place in the queue, free again when it is dropped.
    pub(super) place: Arc<OwnedSemaphorePermit>,
}

/// A job under way.
struct Listener {
    choice: usize,
    listener: UnboundedSender<(usize, News)>,
    _place: Arc<OwnedSemaphorePermit>,
}

/// Answers jobs until nobody can send any more.
pub(super) fn work<K: Kernels>(
    model: &AnswerModel<K>,
    limits: Limits,
    preambles: &[(Option<usize>, Vec<u32>)],
    jobs: &Receiver<Job>,
) {
    let scheduler = || {
        let mut scheduler = Scheduler::new(model, limits);
        for (adapter, tokens) in preambles {
            scheduler.share_preamble(*adapter, tokens);
        }
        scheduler
    };
    let mut desk = Desk { scheduler: scheduler(), listeners: BTreeMap::new() };
    loop {
        if desk.scheduler.is_done() {
            let Ok(job) = jobs.recv() else { return };
            desk.take(job);
        }
        while let Ok(job) = jobs.try_recv() {
            desk.take(job);
        }
        desk.drop_hung_up();
        if let Err(error) = desk.step() {
            tracing::error!("{error}; all requests under way end, and the batch begins anew");
            let reason = error.to_string();
            for (_, listener) in std::mem::take(&mut desk.listeners) {
                listener.tell(News::Failed(Error::Decoding(reason.clone())));
            }
            desk.scheduler = scheduler();
        }
    }
}

struct Desk<'m, K: Kernels> {
    scheduler: Scheduler<'m, K>,
    /// By the scheduler's number.
    listeners: BTreeMap<usize, Listener>,
}

impl<K: Kernels> Desk<'_, K> {
    fn take(&mut self, job: Job) {
        let Job { request, decoding, choice, listener, place } = job;
        let listener = Listener { choice, listener, _place: place };
        match self.scheduler.push(request, &decoding) {
            Ok(number) => drop(self.listeners.insert(number, listener)),
            Err(error) => listener.tell(News::Failed(error)),
        }
    }

    /// Takes those out of the batch whose clients have gone.
    fn drop_hung_up(&mut self) {
        let gone: Vec<usize> = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.listener.is_closed())
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.scheduler.cancel(number);
            self.listeners.remove(&number);
        }
    }

    fn step(&mut self) -> Result<(), Error> {
        for event in self.scheduler.step()? {
            match event {
                Event::Token { number, token } => {
                    if let Some(listener) = self.listeners.get(&number) {
                        listener.tell(News::Token(token));
                    }
                }
                Event::Finished { number, answer } => self.end(number, News::Finished(answer)),
                Event::Failed { number, error } => self.end(number, News::Failed(error)),
            }
        }
        Ok(())
    }

    fn end(&mut self, number: usize, news: News) {
        if let Some(listener) = self.listeners.remove(&number) {
            listener.tell(news);
        }
    }
}

impl Listener {
    fn tell(&self, news: News) {
        // Who has hung up does not hear it, and is taken out before the next step.
        let _ = self.listener.send((self.choice, news));
    }
}
