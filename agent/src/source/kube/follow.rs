//! Follows one resource: asks what the reflector wants to know, reads the answers, waits after failures.
//!
//! Every wait has an end: for a connection, for an answer, for the next piece of it. What went wrong is told and tried
//! again, for ever.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Request;
use hyper::header::{ACCEPT, RETRY_AFTER, USER_AGENT};
use kube::client::Body;
use tokio::sync::{mpsc, watch};

use super::backoff::Backoff;
use super::client::{Api, chain};
use super::cluster::{Follower, News, State};
use super::kinds::{Presence, WATCHED, What};
use super::lines::Lines;
use super::reflector::{Ask, Change, Reflector, Told};
use super::request::Target;
use super::wire::{self, Malformed, Refusal};

/// A page larger than this is no page: 500 objects of at most 1.5 MB each never come near it in practice.
const MAX_PAGE: usize = 256 << 20;
/// The words of a refusal.
const MAX_REFUSAL: usize = 64 << 10;
/// Changes that travel together.
const CHUNK: usize = 100;
/// A watch that ends sooner, having said nothing, is a failure.
const SHORT: Duration = Duration::from_secs(1);

/// How patient the source is. The default is for real servers.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For the head of an answer, and for each piece of a list.
    pub answer: Duration,
    /// After which a watch is to end by itself, so that watches move between servers; less up to a sixth by chance.
    pub watch: Duration,
    /// How often to ask for a kind that is not installed, where definitions may not be read.
    pub recheck: Duration,
    /// For how long a kind that is defined may be not found before it counts as not there.
    pub settle: Duration,
    /// Divides the waits after failures.
    pub haste: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            answer: Duration::from_secs(30),
            watch: Duration::from_secs(300),
            recheck: Duration::from_secs(300),
            settle: Duration::from_secs(10),
            haste: 1,
        }
    }
}

/// Which custom resources the server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Definitions {
    /// Not asked yet, or no answer yet.
    Unknown,
    /// We may not read them: each kind must be asked for by itself.
    Unreadable,
    /// These, by name.
    Known(Arc<BTreeSet<String>>),
}

/// Where a resource is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nobody knows yet.
    Unknown,
    /// The server does not have it.
    Nowhere,
    /// Under this of its names, for sure.
    At(usize),
    /// Under one of its names, if at all.
    Somewhere,
}

enum Failure {
    /// The server answered, and it was no.
    Refused(Refusal, Option<Duration>),
    /// No answer, or half of one.
    Broken(String),
    /// The resource has come, gone or moved.
    Moved,
    /// Nobody listens any more.
    Over,
}

impl From<Malformed> for Failure {
    fn from(error: Malformed) -> Self {
        Failure::Broken(error.to_string())
    }
}

pub(super) struct Follow {
    pub(super) api: Arc<Api>,
    pub(super) who: Follower,
    pub(super) target: Target,
    pub(super) timing: Timing,
    pub(super) definitions: watch::Receiver<Definitions>,
    pub(super) news: mpsc::Sender<News>,
    pub(super) reflector: Reflector,
    pub(super) backoff: Backoff,
}

impl Follow {
    /// Follows until nobody listens.
    pub(super) async fn run(mut self) {
        // Which of its names is tried, and since when nothing was found under any.
        let mut at = 0;
        let mut missing: Option<Instant> = None;
        // One immediate second try for each thing that worked.
        let mut hurry = true;
        loop {
            let place = self.place();
            match place {
                Place::Unknown | Place::Nowhere => {
                    (at, missing) = (0, None);
                    let told = place == Place::Unknown || self.absent(None).await.is_ok();
                    if !told || self.definitions.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Place::At(index) => at = index,
                Place::Somewhere => {}
            }
            let failure = match self.turn(at, place).await {
                Ok(settled) => {
                    missing = None;
                    if settled {
                        self.backoff.reset();
                        hurry = true;
                    }
                    continue;
                }
                Err(failure) => failure,
            };
            let (state, asked) = match failure {
                Failure::Over => return,
                Failure::Moved => {
                    self.reflector.interrupted();
                    continue;
                }
                Failure::Broken(reason) => {
                    self.reflector.interrupted();
                    self.api.renew().await;
                    (State::Failing { reason, refused: false }, None)
                }
                Failure::Refused(refusal, asked) => {
                    let again = self.reflector.refused(&refusal);
                    if again && std::mem::take(&mut hurry) {
                        continue;
                    }
                    if refusal.code == 401 {
                        self.api.renew().await;
                    }
                    let optional = self.target.watched.presence != Presence::Always;
                    if refusal.code == 404 && optional {
                        if place == Place::Somewhere {
                            at += 1;
                            if at < self.target.watched.apis.len() {
                                continue;
                            }
                            at = 0;
                            if self.nothing_found(&mut missing).await.is_err() {
                                return;
                            }
                            continue;
                        }
                        let since = *missing.get_or_insert_with(Instant::now);
                        if self.reflector.is_empty() && since.elapsed() >= self.timing.settle {
                            let version = self.target.api_version(at);
                            let because = format!("it is installed, but not in version {version}");
                            (State::Absent { because: Some(because) }, None)
                        } else {
                            (State::Failing { reason: refusal.to_string(), refused: true }, None)
                        }
                    } else {
                        (State::Failing { reason: refusal.to_string(), refused: true }, asked)
                    }
                }
            };
            if self.tell(Vec::new(), Some(state)).await.is_err() {
                return;
            }
            tokio::time::sleep(self.backoff.after_failure(asked)).await;
        }
    }

    /// Where definitions cannot be read and nothing was found: there is none, if that does not change shortly. What is
    /// held stays until then: a server that is starting up may not know its own custom resources yet.
    async fn nothing_found(&mut self, missing: &mut Option<Instant>) -> Result<(), Failure> {
        let since = *missing.get_or_insert_with(Instant::now);
        let wait = match self.reflector.is_empty() || since.elapsed() >= self.timing.settle {
            true => {
                self.absent(None).await?;
                self.timing.recheck
            }
            false => self.backoff.after_failure(None),
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            changed = self.definitions.changed() => changed.map_err(|_| Failure::Over),
        }
    }

    fn place(&mut self) -> Place {
        place(&self.target, &self.definitions.borrow_and_update())
    }

    async fn absent(&mut self, because: Option<String>) -> Result<(), Failure> {
        let mut changes = Vec::new();
        self.reflector.absent(&mut changes);
        self.tell(changes, Some(State::Absent { because })).await
    }

    /// One question and its answer. True: all is well, so that the next failure is a first one.
    async fn turn(&mut self, at: usize, place: Place) -> Result<bool, Failure> {
        let ask = self.reflector.ask();
        let limit = self.timing.watch.as_secs_f64() * (1.0 - self.backoff.chance() / 6.0);
        let limit = Duration::from_secs_f64(limit);
        let path = self.target.path(at, &ask, limit.as_secs().max(1));
        let request = Request::get(path)
            .header(ACCEPT, self.target.accept(&ask))
            .header(USER_AGENT, concat!("manx-agent/", env!("CARGO_PKG_VERSION")))
            .body(Body::empty())
            .expect("the path and the headers are well-formed");
        let answer = tokio::time::timeout(self.timing.answer, self.api.client().send(request)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failure::Broken(chain(&error))),
            Err(_) => return Err(Failure::Broken(no_answer(self.timing.answer))),
        };
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            let asked = head.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
            let words = self.collect(body, MAX_REFUSAL).await.unwrap_or_default();
            let refusal = wire::refusal(head.status.as_u16(), &words);
            return Err(Failure::Refused(refusal, asked.map(Duration::from_secs)));
        }
        match ask {
            Ask::Page(_) | Ask::Probe => self.page(&ask, at, body).await,
            Ask::Stream | Ask::Watch(_) => self.watch(&ask, at, place, limit, body).await,
        }
    }

    async fn page(&mut self, ask: &Ask, at: usize, body: Body) -> Result<bool, Failure> {
        let bytes = self.collect(body, MAX_PAGE).await?;
        let (what, version) = (self.target.watched.what, self.target.api_version(at));
        let page = wire::page(&bytes, what, &version, self.target.kind())?;
        drop(bytes);
        if *ask == Ask::Probe {
            self.reflector.probed(&page.version);
            return Ok(false);
        }
        let mut changes = Vec::new();
        let caught_up = self.reflector.page(page, &mut changes) == Told::CaughtUp;
        while changes.len() > CHUNK {
            let rest = changes.split_off(CHUNK);
            self.tell(std::mem::replace(&mut changes, rest), None).await?;
        }
        self.tell(changes, caught_up.then_some(State::Current)).await?;
        // A page is progress. That the list is complete is none yet: the watch from there may be refused for ever.
        Ok(!caught_up)
    }

    async fn watch(
        &mut self,
        ask: &Ask,
        at: usize,
        place: Place,
        limit: Duration,
        mut body: Body,
    ) -> Result<bool, Failure> {
        let (what, version, kind) =
            (self.target.watched.what, self.target.api_version(at), self.target.kind());
        let started = Instant::now();
        let mut current = matches!(ask, Ask::Watch(_));
        if current {
            self.tell(Vec::new(), Some(State::Current)).await?;
        }
        let mut lines = Lines::default();
        let mut heard = false;
        let mut changes = Vec::new();
        loop {
            // Initial events come in one go; after them silence is normal until the watch ends.
            let patience = if current {
                limit.saturating_sub(started.elapsed()) + self.timing.answer
            } else {
                self.timing.answer
            };
            let Some(bytes) = self.piece(&mut body, patience, Some(place)).await? else { break };
            heard = true;
            lines.push(&bytes);
            while let Some(line) = lines.next().map_err(Failure::Broken)? {
                let event = wire::event(&line, what, &version, kind)?;
                match self.reflector.event(event, &mut changes) {
                    Told::More => {}
                    Told::CaughtUp => {
                        current = true;
                        self.tell(std::mem::take(&mut changes), Some(State::Current)).await?;
                    }
                    Told::AskAgain => {
                        self.tell(changes, None).await?;
                        // A watch that is over at once, time after time, must not turn into a busy loop.
                        let short = started.elapsed() < SHORT;
                        return if short { Err(Failure::Broken(ENDED.to_owned())) } else { Ok(true) };
                    }
                    Told::Refused(refusal) => {
                        self.tell(changes, None).await?;
                        return Err(Failure::Refused(refusal, None));
                    }
                }
                if changes.len() >= CHUNK {
                    self.tell(std::mem::take(&mut changes), None).await?;
                }
            }
            self.tell(std::mem::take(&mut changes), None).await?;
        }
        if !lines.is_empty() {
            return Err(Failure::Broken("the connection broke within an event".to_owned()));
        }
        if !current || (!heard && started.elapsed() < SHORT) {
            return Err(Failure::Broken(ENDED.to_owned()));
        }
        if started.elapsed() + SHORT < limit {
            self.reflector.interrupted();
        }
        Ok(true)
    }

    async fn collect(&mut self, mut body: Body, most: usize) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some(bytes) = self.piece(&mut body, self.timing.answer, None).await? {
            if all.len() + bytes.len() > most {
                return Err(Failure::Broken(format!("an answer of more than {} MiB", most >> 20)));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// The next piece of a body; `None`: that was all. Ends early when the resource is not where it was any more.
    async fn piece(
        &mut self,
        body: &mut Body,
        patience: Duration,
        place: Option<Place>,
    ) -> Result<Option<bytes::Bytes>, Failure> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            tokio::select! {
                frame = body.frame() => match frame {
                    None => return Ok(None),
                    Some(Ok(frame)) => if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    },
                    Some(Err(error)) => return Err(Failure::Broken(chain(&error))),
                },
                () = tokio::time::sleep_until(deadline) => {
                    return Err(Failure::Broken(no_answer(patience)));
                }
                changed = self.definitions.changed(), if place.is_some() => {
                    changed.map_err(|_| Failure::Over)?;
                    if place.is_some_and(|place| place != self::place(&self.target, &self.definitions.borrow())) {
                        return Err(Failure::Moved);
                    }
                }
            }
        }
    }

    async fn tell(&self, changes: Vec<Change>, state: Option<State>) -> Result<(), Failure> {
        if changes.is_empty() && state.is_none() {
            return Ok(());
        }
        let news = News { from: self.who.clone(), changes, state };
        self.news.send(news).await.map_err(|_| Failure::Over)
    }
}

const ENDED: &str = "the server ends each watch at once";

fn no_answer(patience: Duration) -> String {
    format!("no answer within {} s", patience.as_secs_f64().ceil())
}

fn place(target: &Target, definitions: &Definitions) -> Place {
    let resource = match target.watched.presence {
        Presence::Always => return Place::At(0),
        Presence::Installed => target.watched,
        Presence::Along(kind) => {
            let other = WATCHED.iter().find(|w| w.what == What::Objects(kind));
            other.expect("a kind goes along with one of the table")
        }
    };
    let defined = |names: &BTreeSet<String>| {
        let name = |(group, _): &(&str, &str)| format!("{}.{group}", resource.plural);
        resource.apis.iter().position(|api| names.contains(&name(api)))
    };
    let along = target.watched.presence != Presence::Installed;
    match definitions {
        Definitions::Unknown => Place::Unknown,
        Definitions::Unreadable if along => Place::At(0),
        Definitions::Unreadable => Place::Somewhere,
        Definitions::Known(names) => match defined(names) {
            None => Place::Nowhere,
            Some(_) if along => Place::At(0),
            Some(index) => Place::At(index),
        },
    }
}
