//! The translation of a set: every row translated, or listed with the reason.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Result;
use endpoint::cache::{Answer, Cache, NanoDollars};
use instructions::language::Language;
use instructions::recipe::Origin;
use instructions::record::{Record, write_set};
use serde::{Deserialize, Serialize};

use crate::checks::{Checks, Fault, FaultKind, width};
use crate::layout::Layout;
use crate::mask::{MaskForm, Piece};
use crate::task::{BrokenTask, broken_task};
use crate::translator::{Direction, Progress, Translator, hash};

/// What becomes of rows whose task a translation breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Breaking {
    /// They are translated like the others, and listed.
    #[default]
    Keep,
    /// They are dropped.
    Drop,
    /// They are left as they are, apart from the others, for a person or another translator.
    Pass,
}

/// How a set is translated.
#[derive(Clone, Debug)]
pub struct TranslateSettings {
    /// From which language into which.
    pub direction: Direction,
    /// Whether the translation is translated back, as in Chen et al. 2024's round-trip rows.
    pub round_trip: bool,
    /// Which faults are looked for.
    pub checks: Checks,
    /// What becomes of rows whose task breaks.
    pub breaking: Breaking,
    /// How often a piece is asked for, each time in another way, before its row is dropped.
    pub rounds: u32,
}

impl TranslateSettings {
    /// One way, all checks, three rounds, breaking tasks kept.
    pub fn new(direction: Direction) -> TranslateSettings {
        let (checks, breaking) = (Checks::default(), Breaking::default());
        TranslateSettings { direction, round_trip: false, checks, breaking, rounds: 3 }
    }

    /// The language of what comes out.
    pub fn language(&self) -> &Language {
        if self.round_trip { &self.direction.source } else { &self.direction.target }
    }

    /// Where a translated row's text comes from.
    pub fn origin(&self) -> Origin {
        if self.round_trip { Origin::RoundTrip } else { Origin::Translated }
    }
}

/// Tells a text's language and with what probability. This room knows no identification model.
pub type Identify<'a> = dyn Fn(&str) -> (Language, f32) + Sync + 'a;

/// The fields of a record, in the order in which they are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// What is asked.
    Instruction,
    /// What it is asked about.
    Input,
    /// The answer.
    Output,
}

const FIELDS: [Field; 3] = [Field::Instruction, Field::Input, Field::Output];

/// A row that is not in the translated set, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The row.
    pub id: String,
    /// Why, in words.
    pub reason: String,
    /// The kind of fault; `None` where the row's task breaks.
    pub fault: Option<FaultKind>,
    /// The field with the fault.
    pub field: Option<Field>,
    /// From which language into which the fault arose, as `en-fi`.
    pub direction: Option<String>,
    /// What the translator said last, if anything.
    pub said: String,
}

/// A row whose task a translation breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flagged {
    /// The row.
    pub id: String,
    /// What of its task breaks.
    pub task: BrokenTask,
    /// That, in words.
    pub reason: String,
}

/// What a translation came to. Each row that went in is in exactly one of `rows`, `passed` and `dropped`.
#[derive(Clone, Debug, Default)]
pub struct Translated {
    /// The translated rows, in the set's order, their ids kept.
    pub rows: Vec<Record>,
    /// Rows left as they are because their task breaks.
    pub passed: Vec<Record>,
    /// Rows whose task breaks, whatever became of them.
    pub flagged: Vec<Flagged>,
    /// Rows that are not among `rows` because of a fault or their task.
    pub dropped: Vec<Dropped>,
    /// Texts that the translator was asked for, tries again included.
    pub asked: usize,
    /// Texts that were in the cache.
    pub known: usize,
}

impl Translated {
    /// Rows that were dropped because the translator could not be asked or did not answer: another run asks again.
    pub fn unanswered(&self) -> usize {
        self.dropped.iter().filter(|row| row.fault == Some(FaultKind::Unanswered)).count()
    }

    /// How many rows were dropped for each kind of fault; `None` is a task that breaks.
    pub fn reasons(&self) -> BTreeMap<Option<FaultKind>, usize> {
        let mut reasons = BTreeMap::new();
        for row in &self.dropped {
            *reasons.entry(row.fault).or_default() += 1;
        }
        reasons
    }
}

/// A translator, and where its translations are kept.
pub struct Room<'a> {
    /// Who translates.
    pub translator: &'a dyn Translator,
    /// Where translations are kept.
    pub cache: &'a Cache,
    /// Tells the language of translations, where there is a model that knows it.
    pub identify: Option<&'a Identify<'a>>,
    /// Told how it goes on.
    pub progress: &'a dyn Progress,
}

impl Room<'_> {
    /// Whether a text that is long enough to tell is in the language that it is to be in.
    fn check_language(&self, words: &str, checks: &Checks, target: &Language) -> Result<(), Fault> {
        let letters: String = words.chars().filter(|character| character.is_alphabetic()).collect();
        let Some(identify) = self.identify.filter(|_| width(&letters) >= checks.shortest as f64) else {
            return Ok(());
        };
        let (language, probability) = identify(words);
        if target.accepts(&language) || probability < checks.threshold {
            return Ok(());
        }
        let what =
            format!("expected {}, identified as {} ({probability:.2})", target.code(), language.code());
        Err(Fault::new(FaultKind::WrongLanguage, what))
    }
}

/// What a translation would ask for and cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Rows to be translated.
    pub rows: usize,
    /// Rows whose task breaks.
    pub flagged: usize,
    /// Texts to be asked for, equal ones once.
    pub texts: usize,
    /// How many of them are in the cache.
    pub known: usize,
    /// Characters of the texts that are not.
    pub characters: usize,
    /// The most that these can cost, each answered well at the first try, in dollars; a round trip is taken to cost
    /// twice the way there. `None` where no price is known.
    pub dollars_at_most: Option<f64>,
}

/// Says what a translation would ask for and cost; asks nothing.
///
/// # Errors
/// Where the cache cannot be read.
pub fn estimate(records: &[Record], room: &Room<'_>, settings: &TranslateSettings) -> Result<Estimate> {
    let (rows, sorted) = sort_out(records, settings);
    let fields: Vec<FieldState> =
        rows.iter().flat_map(fields_of).map(|text| FieldState::new(text, room.translator)).collect();
    let round = Round::new(room, &settings.direction, 0);
    let texts = round.texts(&fields);
    let (mut known, mut characters, mut most) = (0, 0, Some(0 as NanoDollars));
    for text in texts.keys() {
        if room.cache.answer(&round.key(text))?.is_some() {
            known += 1;
            continue;
        }
        characters += text.chars().count();
        most = most
            .zip(room.translator.most(text, &settings.direction))
            .map(|(sum, cost)| sum.saturating_add(cost));
    }
    let legs = if settings.round_trip { 2.0 } else { 1.0 };
    Ok(Estimate {
        rows: rows.len(),
        flagged: sorted.flagged.len(),
        texts: texts.len(),
        known,
        characters,
        dollars_at_most: most.map(|most| most as f64 / 1e9 * legs),
    })
}

/// Translates a set. What is in the cache is not asked for again, so a run that was ended goes on where it was.
///
/// # Errors
/// What stops the whole translation: the translator refuses everything, or the cache cannot be written. What concerns
/// a row is listed.
pub fn translate_records(
    records: &[Record],
    room: &Room<'_>,
    settings: &TranslateSettings,
) -> Result<Translated> {
    let (mut rows, mut translated) = sort_out(records, settings);
    let mut legs = vec![settings.direction.clone()];
    if settings.round_trip {
        legs.push(settings.direction.reversed());
    }
    for direction in &legs {
        rows = translate_rows(rows, direction, room, settings, &mut translated)?;
    }
    room.progress.end();
    translated.rows = rows;
    // In the set's order, whichever way round they were lost in.
    let place: HashMap<&str, usize> =
        records.iter().enumerate().map(|(place, record)| (record.id.as_str(), place)).collect();
    translated.dropped.sort_by_key(|row| place.get(row.id.as_str()).copied());
    Ok(translated)
}

/// Writes translated rows, each with its origin, in the form that the file's name ends in. Atomic.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_translated(path: &Path, rows: &[Record], origin: Origin) -> Result<()> {
    let told = |record: &Record| Record { origin: Some(origin), ..record.clone() };
    write_set(path, &rows.iter().map(told).collect::<Vec<_>>())
}

/// Puts rows whose task breaks where they belong; gives the others.
fn sort_out(records: &[Record], settings: &TranslateSettings) -> (Vec<Record>, Translated) {
    let mut rows = Vec::new();
    let mut sorted = Translated::default();
    for record in records {
        let Some(task) = broken_task(record) else {
            rows.push(record.clone());
            continue;
        };
        let reason = task.to_string();
        match settings.breaking {
            Breaking::Keep => rows.push(record.clone()),
            Breaking::Pass => sorted.passed.push(record.clone()),
            Breaking::Drop => sorted.dropped.push(Dropped {
                id: record.id.clone(),
                reason: reason.clone(),
                fault: None,
                field: None,
                direction: None,
                said: String::new(),
            }),
        }
        sorted.flagged.push(Flagged { id: record.id.clone(), task, reason });
    }
    (rows, sorted)
}

fn fields_of(record: &Record) -> [&str; 3] {
    [&record.instruction, &record.input, &record.output]
}

/// Translates rows one way; gives those that came through.
fn translate_rows(
    rows: Vec<Record>,
    direction: &Direction,
    room: &Room<'_>,
    settings: &TranslateSettings,
    translated: &mut Translated,
) -> Result<Vec<Record>> {
    let mut fields: Vec<FieldState> =
        rows.iter().flat_map(fields_of).map(|text| FieldState::new(text, room.translator)).collect();
    // What an earlier run had, in whichever round, is not asked for again.
    for number in 0..settings.rounds.max(1) {
        Round::new(room, direction, number).recall(&mut fields, &settings.checks, translated)?;
    }
    for number in 0..settings.rounds.max(1) {
        Round::new(room, direction, number).run(&mut fields, &settings.checks, translated)?;
        if fields.iter().all(|field| field.done.is_some() || field.is_given_up()) {
            break;
        }
    }
    let mut whole = Vec::new();
    for (mut row, states) in rows.into_iter().zip(fields.chunks(FIELDS.len())) {
        let failed = states.iter().zip(FIELDS).find(|(state, _)| state.done.is_none());
        if let Some((state, field)) = failed {
            // Nothing of the row is kept that was found wrong, in whichever field, so that another run asks for it again.
            for key in states.iter().flat_map(|state| &state.doubtful) {
                room.cache.forget(key)?;
            }
            translated.dropped.push(state.dropped(&row.id, field, direction));
            continue;
        }
        let mut texts = states.iter().map(|state| state.done.clone().unwrap_or_default());
        row.instruction = texts.next().unwrap_or_default();
        row.input = texts.next().unwrap_or_default();
        row.output = texts.next().unwrap_or_default();
        row.language = direction.target.clone();
        whole.push(row);
    }
    Ok(whole)
}

/// A field on its way.
struct FieldState {
    layout: Layout,
    /// Each piece's translation, masks put back.
    pieces: Vec<Option<String>>,
    done: Option<String>,
    fault: Option<Fault>,
    said: String,
    /// Keys of translations that were well in pieces, and wrong as a whole.
    doubtful: Vec<String>,
    keys: Vec<String>,
}

impl FieldState {
    fn new(text: &str, translator: &dyn Translator) -> FieldState {
        let layout = Layout::of(text, translator.split());
        let pieces = vec![None; layout.pieces().count()];
        FieldState {
            layout,
            pieces,
            done: None,
            fault: None,
            said: String::new(),
            doubtful: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Whether asking in another way is of no use.
    fn is_given_up(&self) -> bool {
        self.fault.as_ref().is_some_and(|fault| fault.kind == FaultKind::Unanswered)
    }

    fn piece(&self, number: usize) -> Option<&Piece> {
        self.layout.pieces().nth(number)
    }

    /// Looks at a field all of whose pieces are translated.
    fn conclude(&mut self, room: &Room<'_>, checks: &Checks, direction: &Direction) {
        let Some(pieces) = self.pieces.iter().cloned().collect::<Option<Vec<String>>>() else { return };
        let text = self.layout.rejoined(&pieces, &direction.source, &direction.target);
        match self.check(&text, room, checks, direction) {
            Ok(()) => {
                self.done = Some(text);
                self.fault = None;
            }
            Err(fault) => {
                self.fault = Some(fault);
                self.said = text;
                self.doubtful.append(&mut self.keys);
                self.pieces.iter_mut().for_each(|piece| *piece = None);
            }
        }
    }

    /// What only the whole field shows: its structure and its language.
    fn check(
        &self,
        text: &str,
        room: &Room<'_>,
        checks: &Checks,
        direction: &Direction,
    ) -> Result<(), Fault> {
        let layout = Layout::of(text, room.translator.split());
        if layout.skeleton() != self.layout.skeleton() {
            return Err(Fault::new(
                FaultKind::Structure,
                "lines, lists, code or links are others than the source's",
            ));
        }
        let words: Vec<String> = layout.pieces().map(Piece::words).collect();
        room.check_language(&words.join(" "), checks, &direction.target)
    }

    fn dropped(&self, id: &str, field: Field, direction: &Direction) -> Dropped {
        Dropped {
            id: id.to_owned(),
            reason: self.fault.as_ref().map_or_else(|| "not asked for".to_owned(), Fault::to_string),
            fault: Some(self.fault.as_ref().map_or(FaultKind::Unanswered, |fault| fault.kind)),
            field: Some(field),
            direction: Some(format!("{}-{}", direction.source.code(), direction.target.code())),
            said: self.said.clone(),
        }
    }
}

/// The pieces that a text stands for: field and number of the piece.
type Places = Vec<(usize, usize)>;

/// One round of asking.
struct Round<'a> {
    room: &'a Room<'a>,
    direction: &'a Direction,
    number: u32,
    form: MaskForm,
    setting: String,
}

impl<'a> Round<'a> {
    fn new(room: &'a Room<'a>, direction: &'a Direction, number: u32) -> Round<'a> {
        let forms = room.translator.forms();
        let form = forms.get(number as usize).or(forms.last()).copied().unwrap_or(MaskForm::Brackets);
        Round { room, direction, number, form, setting: room.translator.setting() }
    }

    /// What a translation is kept under: all that determines it.
    fn key(&self, text: &str) -> String {
        let (source, target) = (self.direction.source.code(), self.direction.target.code());
        hash(&["translation", &self.setting, source, target, &self.number.to_string(), text])
    }

    /// What is to be asked for, each text once.
    fn texts(&self, fields: &[FieldState]) -> BTreeMap<String, Places> {
        let mut texts: BTreeMap<String, Places> = BTreeMap::new();
        for (place, field) in fields.iter().enumerate() {
            if field.done.is_some() || field.is_given_up() {
                continue;
            }
            for (number, piece) in field.layout.pieces().enumerate() {
                if field.pieces[number].is_none() {
                    texts.entry(piece.masked(self.form)).or_default().push((place, number));
                }
            }
        }
        texts
    }

    /// Takes what the cache has from this round.
    fn recall(&self, fields: &mut [FieldState], checks: &Checks, translated: &mut Translated) -> Result<()> {
        for (text, places) in self.texts(fields) {
            let key = self.key(&text);
            if let Some(answer) = self.room.cache.answer(&key)?
                && self.take(fields, &places, &answer.text, &key, checks)
            {
                translated.known += 1;
            }
        }
        Ok(())
    }

    fn run(&self, fields: &mut [FieldState], checks: &Checks, translated: &mut Translated) -> Result<()> {
        let mut missing: Vec<(String, Places)> = Vec::new();
        let texts = self.texts(fields);
        let total = texts.len();
        for (text, places) in texts {
            let key = self.key(&text);
            match self.room.cache.answer(&key)? {
                // Kept under other rules, it may be no translation by today's.
                Some(answer) if self.take(fields, &places, &answer.text, &key, checks) => {}
                _ => missing.push((text, places)),
            }
        }
        translated.known += total - missing.len();
        translated.asked += missing.len();
        self.room.progress.begin(self.number, total, total - missing.len());
        let asked: Vec<String> = missing.iter().map(|(text, _)| text.clone()).collect();
        let mut give = |index: usize, reply: Result<String, String>| -> Result<()> {
            let (text, places) = &missing[index];
            self.room.progress.translated();
            match reply {
                Ok(translation) => {
                    let key = self.key(text);
                    if self.take(fields, places, &translation, &key, checks) {
                        let answer =
                            Answer { text: translation, prompt_tokens: None, completion_tokens: None };
                        self.room.cache.keep(&key, text, &answer)?;
                    }
                }
                Err(reason) => {
                    for (field, _) in places {
                        fields[*field].fault = Some(Fault::new(FaultKind::Unanswered, reason.clone()));
                    }
                }
            }
            Ok(())
        };
        if !asked.is_empty() {
            self.room.translator.translate(
                &asked,
                self.direction,
                self.number,
                self.room.progress,
                &mut give,
            )?;
        }
        for field in fields.iter_mut().filter(|field| field.done.is_none()) {
            field.conclude(self.room, checks, self.direction);
        }
        Ok(())
    }

    /// Takes a translation for every piece that it fits; says whether it fitted them all.
    fn take(
        &self,
        fields: &mut [FieldState],
        places: &Places,
        translation: &str,
        key: &str,
        checks: &Checks,
    ) -> bool {
        let mut fits_all = true;
        for (field, number) in places {
            let state = &mut fields[*field];
            let Some(piece) = state.piece(*number) else { continue };
            match self.checked(piece, translation, checks) {
                Ok(text) => {
                    state.pieces[*number] = Some(text);
                    state.keys.push(key.to_owned());
                }
                Err(fault) => {
                    fits_all = false;
                    if !state.is_given_up() {
                        state.fault = Some(fault);
                    }
                    translation.clone_into(&mut state.said);
                }
            }
        }
        fits_all
    }

    /// A piece's translation with its masks put back, if nothing is wrong with it.
    fn checked(&self, piece: &Piece, translation: &str, checks: &Checks) -> Result<String, Fault> {
        let translation = translation.trim();
        if translation.is_empty() {
            return Err(Fault::new(FaultKind::Empty, "nothing came back"));
        }
        let text = piece
            .unmasked(translation, self.form)
            .map_err(|fault| Fault::new(FaultKind::Masks, fault.to_string()))?;
        checks.piece(piece.text(), &piece.words(), &text, self.direction)?;
        // Among many sentences, one in another language would not be seen.
        self.room.check_language(&text, checks, &self.direction.target)?;
        Ok(text)
    }
}
