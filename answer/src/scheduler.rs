//! Many prompts and beams in one batch, continuously: a finished prompt's place is taken by the next.
//!
//! Each step is one pass over the model. Searches that have read their prompt give a row per hypothesis; what is left
//! of the pass reads prompts, in pieces. Rows of one adapter lie together. When pages run short, the prompt that came
//! last gives its pages back and starts again later: a response is a function of its prompt, so it comes out the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use engine::decoder::AdapterRows;
use engine::decoder::cache::{CachedBatch, CachedSequence, KeyValueCache, PAGE_SIZE};
use engine::kernels::Kernels;
use engine::{Workspace, WorkspacePlan};
use rayon::prelude::*;

use crate::answer_model::AnswerModel;
use crate::error::Error;
use crate::preamble::{Preamble, common};
use crate::request::{Answer, Finish, Request};
use crate::scores::Candidate;
use crate::search::{Found, NotNumbers, Search, Step, Stops};
use crate::settings::Decoding;

/// How much a scheduler may take at once. No response depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens of one pass over the model.
    pub batch_tokens: usize,
    /// Pages of keys and values.
    pub pages: usize,
}

impl Limits {
    /// As `decoding` says, for these requests: no more pages than they need, no fewer than the largest needs.
    pub fn plan<K: Kernels>(model: &AnswerModel<K>, decoding: &Decoding, requests: &[Request]) -> Self {
        let prompts: Vec<usize> = requests.iter().map(|request| request.prompt_tokens.len()).collect();
        let preambles: usize =
            common_beginnings(requests).values().map(|tokens| pages(tokens.len()) + 1).sum();
        let affordable = decoding.key_value_bytes(model.decoder.weight_bytes())
            / KeyValueCache::page_bytes(&model.decoder).max(1);
        Self {
            batch_tokens: decoding.batch_tokens.max(decoding.beams),
            pages: Self::pages_for(&prompts, decoding, affordable) + preambles,
        }
    }

    /// Pages for prompts of these lengths, those of a common beginning apart: no more than they need and `affordable`,
    /// no fewer than the largest needs.
    pub fn pages_for(prompts: &[usize], decoding: &Decoding, affordable: usize) -> usize {
        let largest = prompts.iter().map(|prompt| worst_pages(*prompt, decoding)).max().unwrap_or(0);
        let expected: usize = prompts.iter().map(|prompt| expected_pages(*prompt, decoding)).sum();
        affordable.min(expected.max(largest)).max(largest)
    }
}

/// What has come of a step.
#[derive(Debug)]
pub enum Event {
    /// Greedy search or sampling has found a request's next token; it is not given where it ends the response.
    Token {
        /// The request's number.
        number: usize,
        /// The token.
        token: u32,
    },
    /// A request is answered.
    Finished {
        /// The request's number.
        number: usize,
        /// The answer.
        answer: Answer,
    },
    /// A request cannot be answered. The others go on.
    Failed {
        /// The request's number.
        number: usize,
        /// Why.
        error: Error,
    },
}

/// Requests on their way to answers.
pub struct Scheduler<'m, K: Kernels> {
    model: &'m AnswerModel<K>,
    limits: Limits,
    cache: KeyValueCache<K>,
    workspace: Workspace<K>,
    preambles: BTreeMap<Option<usize>, Preamble>,
    waiting: VecDeque<Waiting>,
    /// In the order in which they were admitted.
    active: Vec<Active>,
    /// A request has lost its place: nobody gets one before another is answered.
    crowded: bool,
    /// Whether it was said that a request may be longer than the model was made for.
    warned: bool,
    pushed: usize,
}

/// A request that has no place in the batch yet.
struct Waiting {
    number: usize,
    request: Request,
    decoding: Arc<Decoding>,
    /// Tokens given out as events, before it lost its place.
    told: usize,
}

/// A request that is in the batch.
struct Active {
    waiting: Waiting,
    search: Search,
    /// Keys and values of each hypothesis; of the prompt, as long as that is being read.
    sequences: Vec<CachedSequence>,
    /// The token of each hypothesis that has no keys and values yet; none as long as the prompt is being read.
    next: Vec<u32>,
    /// Tokens found so far.
    found: usize,
}

/// One pass over the model.
#[derive(Default)]
struct Pass {
    batch: CachedBatch,
    /// The rows of each adapter.
    adapters: Vec<(usize, std::ops::Range<usize>)>,
    /// Rows whose logits are wanted.
    rows: Vec<usize>,
    /// Whose they are: the place among the active requests, and the hypothesis.
    owners: Vec<(usize, usize)>,
}

/// How many tokens of a prompt, or of a preamble, a pass may still read.
struct Room {
    tokens: usize,
    pages: usize,
}

impl Room {
    /// Takes as many of `wanted` tokens as there is room for.
    fn take(&mut self, wanted: usize) -> usize {
        // One page more than the tokens fill: the last one may be shared, and is copied then.
        let taken = wanted.min(self.tokens).min(self.pages.saturating_sub(1) * PAGE_SIZE);
        self.tokens -= taken;
        if taken > 0 {
            self.pages -= pages(taken) + 1;
        }
        taken
    }
}

impl<'m, K: Kernels> Scheduler<'m, K> {
    /// A scheduler without requests.
    pub fn new(model: &'m AnswerModel<K>, limits: Limits) -> Self {
        let adapters: Vec<_> = model.adapters.iter().map(|(_, adapter)| adapter).collect();
        let plan = WorkspacePlan { tokens: limits.batch_tokens, training: false, recompute: false };
        Self {
            model,
            limits,
            cache: KeyValueCache::new(&model.decoder, limits.pages),
            workspace: Workspace::new(&model.decoder, &adapters, plan),
            preambles: BTreeMap::new(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            crowded: false,
            warned: false,
            pushed: 0,
        }
    }

    /// Has what an adapter's prompts begin with read once. A request that does not begin with it is answered all the
    /// same.
    pub fn share_preamble(&mut self, adapter: Option<usize>, tokens: &[u32]) {
        if let Some(old) = self.preambles.insert(adapter, Preamble::new(tokens.to_vec())) {
            self.cache.release(old.sequence);
        }
    }

    /// Adds a request, and gives its number: 0 for the first, then 1, and so on.
    ///
    /// # Errors
    /// It cannot be answered: it has no tokens, or unknown ones, or no such adapter, or would never fit.
    pub fn push(&mut self, request: Request, decoding: &Arc<Decoding>) -> Result<usize, Error> {
        decoding.check().map_err(Error::Decoding)?;
        self.check(&request, decoding).map_err(|reason| Error::Request { id: request.id.clone(), reason })?;
        let (length, most) =
            (request.prompt_tokens.len() + decoding.new_tokens, self.model.decoder.config.max_positions);
        if length > most && !self.warned {
            self.warned = true;
            tracing::warn!(
                "prompt {} and its new tokens may reach {length} tokens; the model was made for {most}",
                request.id
            );
        }
        let number = self.pushed;
        self.pushed += 1;
        self.waiting.push_back(Waiting { number, request, decoding: Arc::clone(decoding), told: 0 });
        Ok(number)
    }

    fn check(&self, request: &Request, decoding: &Decoding) -> Result<(), String> {
        let vocabulary = self.model.decoder.config.vocabulary;
        if request.prompt_tokens.is_empty() {
            return Err("it has no tokens; expected at least one".to_owned());
        }
        if let Some(token) = request.prompt_tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(format!("it has token {token}; the model's vocabulary ends before {vocabulary}"));
        }
        if let Some(adapter) = request.adapter.filter(|adapter| *adapter >= self.model.adapters.len()) {
            return Err(format!("it asks for adapter {adapter} of {}", self.model.adapters.len()));
        }
        if decoding.beams > self.limits.batch_tokens {
            let limit = self.limits.batch_tokens;
            return Err(format!("{} beams do not fit a batch of {limit} tokens", decoding.beams));
        }
        // With room for the copies of shared pages that a step makes.
        let preambles: usize = self.preambles.values().map(|preamble| pages(preamble.tokens.len()) + 1).sum();
        let needed = worst_pages(request.prompt_tokens.len(), decoding);
        if needed + preambles > self.limits.pages {
            return Err(format!(
                "its {} tokens and up to {} new ones of {} beams need {needed} pages of keys and values; there \
                 are {} for it",
                request.prompt_tokens.len(),
                decoding.new_tokens,
                decoding.beams,
                self.limits.pages.saturating_sub(preambles)
            ));
        }
        Ok(())
    }

    /// Drops a request, wherever it is: its client has gone. False where it is finished, or was never there.
    pub fn cancel(&mut self, number: usize) -> bool {
        if let Some(place) = self.active.iter().position(|active| active.waiting.number == number) {
            self.leave(place);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.number != number);
        self.waiting.len() < before
    }

    /// Takes a request out of the batch.
    fn leave(&mut self, place: usize) -> Waiting {
        let active = self.active.remove(place);
        active.sequences.into_iter().for_each(|sequence| self.cache.release(sequence));
        self.crowded = false;
        active.waiting
    }

    /// Whether every request is answered.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// One pass over the model, and what comes of it; nothing where all is done.
    ///
    /// # Errors
    /// The cache of keys and values is full, against all that was counted.
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        self.admit();
        let pass = match self.next_pass()? {
            Ok(pass) => pass,
            Err(failed) => return Ok(failed),
        };
        let adapters: Vec<AdapterRows<'_, K>> = pass
            .adapters
            .iter()
            .map(|(adapter, rows)| AdapterRows {
                adapter: &self.model.adapters[*adapter].1,
                rows: rows.clone(),
            })
            .collect();
        let decoder = &self.model.decoder;
        let (active, stops) = (&self.active, self.stops());
        let mut offered: Vec<Vec<Candidate>> = Vec::with_capacity(pass.rows.len());
        let mut choose = |places: std::ops::Range<usize>, logits: &mut [f32]| {
            let rows = logits.par_chunks_mut(decoder.config.vocabulary).zip(&pass.owners[places]);
            offered.par_extend(rows.map(|(logits, (place, hypothesis))| {
                active[*place].search.choose(stops, *hypothesis, logits)
            }));
        };
        let (cache, workspace) = (&mut self.cache, &mut self.workspace);
        decoder.cached_logits(&adapters, &pass.batch, cache, &pass.rows, workspace, &mut choose);
        Ok(self.advance(&pass.owners, offered))
    }

    fn stops(&self) -> Stops<'m> {
        let tokenizer = self.model.base.tokenizer();
        Stops { tokens: &tokenizer.special().stops, tokenizer }
    }

    /// Gives places in the batch to those who wait, first come, first served.
    fn admit(&mut self) {
        let slots = self.limits.batch_tokens;
        while let Some(first) = self.waiting.front() {
            let preamble = self.preambles.get(&first.request.adapter);
            if preamble.is_some_and(|preamble| !preamble.unread().is_empty()) {
                return;
            }
            let shared = preamble.filter(|preamble| preamble.begins(&first.request.prompt_tokens));
            let beams: usize = self.active.iter().map(|active| active.waiting.decoding.beams).sum();
            let expected: usize = self.active.iter().map(Active::expected_pages).sum();
            let wanted = expected_pages(first.request.prompt_tokens.len(), &first.decoding);
            let fits = beams + first.decoding.beams <= slots && expected + wanted <= self.own_pages();
            if (self.crowded || !fits) && !self.active.is_empty() {
                return;
            }
            let sequence = shared.map(|preamble| self.cache.fork(&preamble.sequence)).unwrap_or_default();
            let Some(waiting) = self.waiting.pop_front() else { return };
            self.active.push(Active::new(waiting, sequence));
        }
    }

    /// Pages that no preamble holds.
    fn own_pages(&self) -> usize {
        let preambles: usize =
            self.preambles.values().map(|preamble| pages(preamble.sequence.length())).sum();
        self.limits.pages.saturating_sub(preambles)
    }

    /// Takes places away, the last one first, until there are pages for a pass; then makes the pass. Or says who
    /// failed, where even one request does not fit.
    fn next_pass(&mut self) -> Result<Result<Pass, Vec<Event>>, Error> {
        while !self.is_done() {
            let decoding: usize = self.active.iter().map(|active| active.next.len()).sum();
            if decoding <= self.cache.free_pages() {
                let pass = self.assemble(decoding)?;
                if !pass.batch.tokens.is_empty() {
                    return Ok(Ok(pass));
                }
            }
            let Some(last) = self.active.len().checked_sub(1) else {
                // Not even a preamble fits: prompts are read without any.
                let preambles = std::mem::take(&mut self.preambles);
                preambles.into_values().for_each(|preamble| self.cache.release(preamble.sequence));
                self.admit();
                continue;
            };
            let waiting = self.leave(last);
            if last == 0 {
                let error = Error::CacheFull { id: waiting.request.id.clone(), pages: self.limits.pages };
                return Ok(Err(vec![Event::Failed { number: waiting.number, error }]));
            }
            tracing::debug!("prompt {} starts again later: pages are short", waiting.request.id);
            self.crowded = true;
            self.waiting.push_front(waiting);
        }
        Ok(Err(Vec::new()))
    }

    /// A pass: all hypotheses, and of prompts what there is room for.
    fn assemble(&mut self, decoding: usize) -> Result<Pass, Error> {
        let mut room =
            Room { tokens: self.limits.batch_tokens - decoding, pages: self.cache.free_pages() - decoding };
        let mut pass = Pass::default();
        let waits = self.waiting.front().map(|waiting| waiting.request.adapter);
        let mut order: Vec<usize> = (0..self.active.len()).collect();
        order.sort_by_key(|place| (self.active[*place].waiting.request.adapter, *place));
        let mut adapters: Vec<Option<usize>> =
            order.iter().map(|place| self.active[*place].waiting.request.adapter).collect();
        adapters.extend(waits);
        adapters.sort_unstable();
        adapters.dedup();
        for adapter in adapters {
            let start = pass.batch.tokens.len();
            if waits == Some(adapter) {
                self.read_preamble(adapter, &mut room, &mut pass)?;
            }
            for place in &order {
                if self.active[*place].waiting.request.adapter == adapter {
                    self.add(*place, &mut room, &mut pass)?;
                }
            }
            if let Some(adapter) = adapter.filter(|_| start < pass.batch.tokens.len()) {
                pass.adapters.push((adapter, start..pass.batch.tokens.len()));
            }
        }
        Ok(pass)
    }

    fn read_preamble(
        &mut self,
        adapter: Option<usize>,
        room: &mut Room,
        pass: &mut Pass,
    ) -> Result<(), Error> {
        let Some(preamble) = self.preambles.get_mut(&adapter) else { return Ok(()) };
        let taken = room.take(preamble.unread().len());
        if taken == 0 {
            return Ok(());
        }
        let tokens = preamble.unread()[..taken].to_vec();
        self.cache.extend(&self.model.decoder, &mut preamble.sequence, &tokens, &mut pass.batch).map_err(
            |_| Error::CacheFull { id: "(the common beginning)".to_owned(), pages: self.limits.pages },
        )
    }

    /// Adds one request's rows.
    fn add(&mut self, place: usize, room: &mut Room, pass: &mut Pass) -> Result<(), Error> {
        let active = &mut self.active[place];
        let full = |_| Error::CacheFull { id: active.waiting.request.id.clone(), pages: self.limits.pages };
        if active.next.is_empty() {
            let prompt = &active.waiting.request.prompt_tokens;
            let unread = &prompt[active.sequences[0].length()..];
            let taken = room.take(unread.len());
            if taken == 0 {
                return Ok(());
            }
            let (decoder, sequence) = (&self.model.decoder, &mut active.sequences[0]);
            self.cache.extend(decoder, sequence, &unread[..taken], &mut pass.batch).map_err(full)?;
            if taken == unread.len() {
                pass.rows.push(pass.batch.tokens.len() - 1);
                pass.owners.push((place, 0));
            }
            return Ok(());
        }
        for (hypothesis, sequence) in active.sequences.iter_mut().enumerate() {
            let token = &active.next[hypothesis..=hypothesis];
            self.cache.extend(&self.model.decoder, sequence, token, &mut pass.batch).map_err(full)?;
            pass.rows.push(pass.batch.tokens.len() - 1);
            pass.owners.push((place, hypothesis));
        }
        Ok(())
    }

    /// Hands each search what its rows offered.
    fn advance(&mut self, owners: &[(usize, usize)], offered: Vec<Vec<Candidate>>) -> Vec<Event> {
        let mut rows: BTreeMap<usize, Vec<Vec<Candidate>>> = BTreeMap::new();
        for ((place, _), candidates) in owners.iter().zip(offered) {
            rows.entry(*place).or_default().push(candidates);
        }
        let (mut events, mut ended) = (Vec::new(), Vec::new());
        let stops = self.stops();
        for (place, offered) in rows {
            let active = &mut self.active[place];
            match active.search.advance(stops, &offered) {
                Ok(Step::Continue(next)) => events.extend(active.go_on(&next, &mut self.cache)),
                Ok(Step::Finished(found)) => ended.push((place, Some(found))),
                Err(NotNumbers) => ended.push((place, None)),
            }
        }
        let ended = ended.into_iter().rev().map(|(place, found)| {
            let waiting = self.leave(place);
            let id = waiting.request.id.clone();
            let answer =
                found.ok_or(Error::NotNumbers { id }).and_then(|found| self.read_out(&waiting, found));
            match answer {
                Ok(answer) => Event::Finished { number: waiting.number, answer },
                Err(error) => Event::Failed { number: waiting.number, error },
            }
        });
        let mut ended: Vec<Event> = ended.collect();
        ended.reverse();
        events.append(&mut ended);
        events
    }

    /// The answer as text.
    fn read_out(&self, waiting: &Waiting, found: Found) -> Result<Answer, Error> {
        let mut text = self.model.base.tokenizer().decode(&found.tokens, true)?;
        let stops = waiting.decoding.stops.iter().filter_map(|stop| text.find(stop));
        if let Some(end) = stops.min().filter(|_| found.finish == Finish::Stop) {
            text.truncate(end);
        }
        Ok(Answer {
            id: waiting.request.id.clone(),
            tokens: found.tokens,
            text,
            finish: found.finish,
            score: found.score,
            prompt_tokens: waiting.request.prompt_tokens.len(),
        })
    }
}

impl Active {
    fn new(waiting: Waiting, sequence: CachedSequence) -> Self {
        let request = &waiting.request;
        let search = Search::new(&request.id, &request.prompt_tokens, &waiting.decoding);
        Self { waiting, search, sequences: vec![sequence], next: Vec::new(), found: 0 }
    }

    fn expected_pages(&self) -> usize {
        expected_pages(self.waiting.request.prompt_tokens.len(), &self.waiting.decoding)
    }

    /// Forks and drops hypotheses, and tells the token where there is one only.
    fn go_on<K: Kernels>(&mut self, next: &[(usize, u32)], cache: &mut KeyValueCache<K>) -> Option<Event> {
        let sequences = next.iter().map(|(parent, _)| cache.fork(&self.sequences[*parent])).collect();
        for old in std::mem::replace(&mut self.sequences, sequences) {
            cache.release(old);
        }
        self.next = next.iter().map(|(_, token)| *token).collect();
        self.found += 1;
        let new = matches!(self.search, Search::Single(_)) && self.found > self.waiting.told;
        new.then(|| {
            self.waiting.told = self.found;
            Event::Token { number: self.waiting.number, token: self.next[0] }
        })
    }
}

fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_SIZE)
}

/// Pages that a request cannot need more than: its beams share nothing but whole pages of the prompt.
fn worst_pages(prompt: usize, decoding: &Decoding) -> usize {
    let shared = prompt / PAGE_SIZE;
    // One more each: a step counts a page for every hypothesis, whether it needs one or not.
    shared + decoding.beams * (pages(prompt + decoding.new_tokens) - shared + 1) + 2
}

/// Pages that a request is likely to need at most: beams differ in their last tokens only.
fn expected_pages(prompt: usize, decoding: &Decoding) -> usize {
    pages(prompt + decoding.new_tokens) + 2 * decoding.beams
}

/// What the prompts of each adapter begin with.
fn common_beginnings(requests: &[Request]) -> BTreeMap<Option<usize>, &[u32]> {
    let adapters: std::collections::BTreeSet<_> = requests.iter().map(|request| request.adapter).collect();
    let beginning = |adapter: Option<usize>| {
        let own = requests.iter().filter(move |request| request.adapter == adapter);
        common(own.map(|request| request.prompt_tokens.as_slice()))
    };
    adapters
        .into_iter()
        .map(|adapter| (adapter, beginning(adapter)))
        .filter(|(_, all)| !all.is_empty())
        .collect()
}

/// Answers requests, of several adapters at once, and tells each answer as it is finished, with its request's place.
///
/// # Errors
/// A setting is out of range, a request cannot be answered, or the model's scores are no numbers.
pub fn answer<K: Kernels>(
    model: &AnswerModel<K>,
    requests: &[Request],
    decoding: &Decoding,
    on_finished: &mut dyn FnMut(usize, &Answer),
) -> Result<Vec<Answer>, Error> {
    decoding.check().map_err(Error::Decoding)?;
    let mut scheduler = Scheduler::new(model, Limits::plan(model, decoding, requests));
    for (adapter, tokens) in common_beginnings(requests) {
        scheduler.share_preamble(adapter, tokens);
    }
    let decoding = Arc::new(decoding.clone());
    for request in requests {
        scheduler.push(request.clone(), &decoding)?;
    }
    let mut answers = BTreeMap::new();
    while !scheduler.is_done() {
        for event in scheduler.step()? {
            match event {
                Event::Token { .. } => {}
                Event::Finished { number, answer } => {
                    on_finished(number, &answer);
                    answers.insert(number, answer);
                }
                Event::Failed { error, .. } => return Err(error),
            }
        }
    }
    Ok(answers.into_values().collect())
}
