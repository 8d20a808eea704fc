//! The dispatcher: hands events to endpoints, sends what may be sent, and writes down what became of it.
//!
//! The one rule: a message counts as told when that is written down, and not before. A server that is killed in between
//! tells it again, with the same id; it never skips one. So positions are written together with the deliveries that they
//! stand for, many in one transaction.
//!
//! Who hangs must not hold up the others, so an attempt has a quick place only for [`MOVES`]; then it moves to a hanging
//! one. Endpoints that are known to be slow begin in a small share of places of their own. Nobody knows that an endpoint
//! hangs before one of its attempts does, and by then it may have begun one for each of its lanes; so when
//! [`SEVERAL`] places are taken, whoever has one gets no other, and the rest is for one attempt of each.
//! Places go to who got one longest ago. Without endpoints nothing is read and nothing is waited for but the first one.
//!
//! ```text
//!  quick --- answer within 100 ms ----------------> over
//!    '------ none: moves to ---> hanging ---------> over
//!                                   '-- after 500 ms: the endpoint is slow
//!  slow (what the endpoint is) -------------------> over
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::webhook_deliveries::{Bounds, Progress, Recorded, Told};
use holdfast_store::webhooks::Webhook;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, HANGS, Job, Shared, Standing};
use super::guard::{Lookup, SystemLookup};
use super::message::{self, Events};
use super::send::{Attempt, Secrets, Sender};
use crate::Control;

/// Attempts at once that are quick, that turned out to hang, and of endpoints that are known to be slow.
const QUICK: usize = 512;
/// How long an attempt has a quick place.
const MOVES: Duration = Duration::from_millis(100);
const HANGING: usize = 1024;
/// Quick and hanging places that may be taken by several attempts of the same endpoint.
const SEVERAL: usize = 512;
const SLOW: usize = 128;
/// Events read at once.
const PAGE: i64 = 500;
/// Events that an endpoint may be behind at a start and still be handed those of all, instead of reading its own.
const NEAR: i64 = 20_000;
/// An idle endpoint's position is written when it is this far behind.
const SAVE_EVERY: i64 = 5_000;
/// Deliveries that may wait to be written; beyond, nothing is sent.
const MOST_UNWRITTEN: usize = 5_000;
/// What is due is looked for this often while something waits; and events, should a bell be missed.
const TICK: Duration = Duration::from_secs(1);
/// Rows that are due, looked at in one go.
const DUE: i64 = 50_000;
/// After a database fault.
const FAULT_PAUSE: Duration = Duration::from_secs(1);
/// The history: deliveries of each endpoint that are over, and for how long they are kept.
const KEPT: i64 = 1_000;
const KEPT_FOR: Duration = Duration::from_secs(30 * 86_400);
const EXPIRE_EVERY: Duration = Duration::from_secs(3_600);
/// An endpoint of which every delivery failed for this long is disabled.
pub const PATIENCE: Duration = Duration::from_secs(5 * 86_400);
const BOUNDS: Bounds = Bounds { kept: KEPT, patience: PATIENCE };

/// Runs until `stop`.
pub async fn run(control: Control, stop: CancellationToken) {
    run_with(control, Arc::new(SystemLookup), stop).await;
}

/// The same, with names looked up in another way.
pub async fn run_with(control: Control, lookup: Arc<dyn Lookup>, stop: CancellationToken) {
    let guard = Arc::new(control.settings.webhooks.guard.clone());
    let sender = match Sender::new(guard, &control.settings.webhooks.authorities, lookup) {
        Ok(sender) => sender,
        Err(error) => {
            tracing::error!(%error, "webhooks cannot be delivered");
            return;
        }
    };
    let (said, heard) = mpsc::unbounded_channel();
    let of = |count| Arc::new(Semaphore::new(count));
    let places = Places { quick: of(QUICK), hanging: of(HANGING), slow: of(SLOW) };
    let dispatcher = Dispatcher {
        control,
        sender,
        places,
        said,
        turn: 0,
        endpoints: HashMap::new(),
        of_workspace: HashMap::new(),
        live: None,
        told: Vec::new(),
        writing: None,
        look_for_events: true,
        look_for_due: true,
        expired_at: None,
    };
    dispatcher.run(heard, stop).await;
}

struct Places {
    quick: Arc<Semaphore>,
    hanging: Arc<Semaphore>,
    slow: Arc<Semaphore>,
}

impl Places {
    /// What is left is for endpoints that have none.
    fn are_scarce(&self) -> bool {
        let free = self.quick.available_permits() + self.hanging.available_permits();
        QUICK + HANGING - free >= SEVERAL
    }
}

/// What an attempt says to the dispatcher.
enum Said {
    /// It has left its quick place for a hanging one.
    Moved,
    /// It outlived [`HANGS`].
    Hangs {
        webhook: i64,
        epoch: i64,
    },
    Ended {
        job: Job,
        attempt: Attempt,
        began: Timestamp,
    },
}

type Written = (Vec<Told>, Result<Recorded, Error>);

struct Dispatcher {
    control: Control,
    sender: Sender,
    places: Places,
    said: mpsc::UnboundedSender<Said>,
    /// Attempts begun so far.
    turn: u64,
    endpoints: HashMap<i64, Endpoint>,
    of_workspace: HashMap<i64, Vec<i64>>,
    /// Live endpoints were handed everything up to here.
    live: Option<i64>,
    /// To be written.
    told: Vec<Told>,
    writing: Option<JoinHandle<Written>>,
    look_for_events: bool,
    look_for_due: bool,
    expired_at: Option<Timestamp>,
}

impl Dispatcher {
    async fn run(mut self, mut heard: mpsc::UnboundedReceiver<Said>, stop: CancellationToken) {
        let (mut events, mut changed) = (self.control.events_bell.subscribe(), self.control.webhooks_bell.subscribe());
        let mut reload = true;
        while !stop.is_cancelled() {
            events.borrow_and_update();
            let pause = match self.round(std::mem::take(&mut reload)).await {
                Ok(true) => Some(Duration::ZERO),
                Ok(false) => (!self.endpoints.is_empty()).then_some(TICK),
                Err(error) => {
                    tracing::error!(%error, "webhooks cannot be read from the database");
                    reload = true;
                    Some(FAULT_PAUSE)
                }
            };
            let any = !self.endpoints.is_empty();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = changed.changed() => reload = true,
                Some(said) = heard.recv() => {
                    self.hear(said);
                    while let Ok(said) = heard.try_recv() {
                        self.hear(said);
                    }
                }
                written = written(&mut self.writing) => self.written(written).await,
                _ = events.changed(), if any => self.look_for_events = true,
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                    self.look_for_events = true;
                    self.look_for_due |= pause == Some(TICK);
                }
            }
        }
        // What was told is written, so that it is not told again; what is under way now will be.
        if self.writing.is_some() {
            let last = written(&mut self.writing).await;
            self.written(last).await;
        }
        self.save_positions(1);
        if self.writing.is_some() {
            let last = written(&mut self.writing).await;
            self.written(last).await;
        }
    }

    /// Does what there is to do. True when there is more to read.
    async fn round(&mut self, changed: bool) -> Result<bool, Error> {
        if changed {
            self.reload().await?;
            (self.look_for_events, self.look_for_due) = (true, true);
        }
        if self.endpoints.is_empty() {
            return Ok(false);
        }
        self.expire().await?;
        let mut more = std::mem::take(&mut self.look_for_events) && self.read_live().await?;
        self.look_for_events = more;
        more |= self.catch_up().await?;
        if std::mem::take(&mut self.look_for_due) {
            self.take_due().await?;
        }
        self.send();
        self.write();
        Ok(more)
    }

    /// Reads which endpoints there are.
    async fn reload(&mut self) -> Result<(), Error> {
        let store = self.control.store.clone();
        let rows = store.webhooks_enabled().await?;
        if rows.is_empty() {
            self.endpoints.clear();
            self.live = None;
            return Ok(());
        }
        let last = store.last_position().await?;
        let live = match self.live {
            Some(live) => live,
            None => rows.iter().map(|row| row.position).min().unwrap_or(last).clamp((last - NEAR).min(last), last),
        };
        self.live = Some(live);
        let mut before = std::mem::take(&mut self.endpoints);
        self.of_workspace.clear();
        for row in rows {
            let known = before.remove(&row.id).filter(|known| known.epoch == row.epoch);
            let endpoint = match known {
                Some(known) if known.updated_at == row.updated_at => known,
                Some(mut known) => {
                    let Some((url, events, secrets)) = self.words(&row) else { continue };
                    (known.url, known.events, known.secrets) = (url, events, secrets);
                    known.updated_at = row.updated_at;
                    known
                }
                None => {
                    let Some((url, events, secrets)) = self.words(&row) else { continue };
                    let waiting = store.lanes_waiting(row.id).await?;
                    let known = store.sequences_after(row.id, row.position * message::MOST + message::MOST - 1).await?;
                    let standing = if row.failing_since.is_some() { Standing::Slow } else { Standing::New };
                    let ids = (row.id, row.workspace_id, row.epoch);
                    let mut new = Endpoint::new(ids, (url, events, secrets), row.position, waiting, known, standing);
                    new.updated_at = row.updated_at;
                    new.live = row.position >= live;
                    new
                }
            };
            self.of_workspace.entry(row.workspace_id).or_default().push(row.id);
            self.endpoints.insert(row.id, endpoint);
        }
        Ok(())
    }

    /// URL, events and secrets of an endpoint. `None` when they cannot be read.
    fn words(&self, row: &Webhook) -> Option<(Arc<str>, Events, Arc<Secrets>)> {
        let names: Vec<String> = serde_json::from_str(&row.events).ok()?;
        let secrets = match self.control.webhook_secrets(row) {
            Ok(secrets) => secrets,
            Err(error) => {
                tracing::error!(webhook = row.uuid, %error, "a webhook's secret cannot be opened; it gets nothing");
                return None;
            }
        };
        Some((row.url.as_str().into(), Events::of(names.iter().map(String::as_str)), Arc::new(secrets)))
    }

    /// Hands new events to all endpoints that are not behind.
    async fn read_live(&mut self) -> Result<bool, Error> {
        let Some(live) = self.live else { return Ok(false) };
        let (heard, upto) = self.control.store.webhook_events(live, None, PAGE).await?;
        if upto == live {
            return Ok(false);
        }
        let mut shared = Shared::default();
        for event in &heard {
            for id in self.of_workspace.get(&event.workspace_id).into_iter().flatten() {
                let Some(endpoint) = self.endpoints.get_mut(id).filter(|endpoint| endpoint.live) else { continue };
                endpoint.hear(event, &mut shared, &mut self.told)?;
            }
        }
        for endpoint in self.endpoints.values_mut().filter(|endpoint| endpoint.live) {
            endpoint.cursor = endpoint.cursor.max(upto);
            endpoint.live = endpoint.has_room();
        }
        self.live = Some(upto);
        self.save_positions(SAVE_EVERY);
        Ok(true)
    }

    /// Lets endpoints that are behind and have room read on.
    async fn catch_up(&mut self) -> Result<bool, Error> {
        let live = self.live.unwrap_or_default();
        let behind: Vec<(i64, i64, i64, i64)> = self
            .endpoints
            .values()
            .filter(|endpoint| !endpoint.live && endpoint.has_room())
            .map(|endpoint| (endpoint.id, endpoint.workspace, endpoint.cursor, endpoint.page()))
            .collect();
        let mut more = false;
        for (id, workspace, cursor, page) in behind {
            let (heard, upto) = self.control.store.webhook_events(cursor, Some(workspace), page).await?;
            let Some(endpoint) = self.endpoints.get_mut(&id) else { continue };
            let mut shared = Shared::default();
            for event in &heard {
                endpoint.hear(event, &mut shared, &mut self.told)?;
            }
            endpoint.cursor = endpoint.cursor.max(upto);
            endpoint.live = endpoint.has_room() && endpoint.cursor >= live;
            more |= !endpoint.live && endpoint.has_room();
        }
        Ok(more)
    }

    /// Hands rows that are due to their endpoints.
    async fn take_due(&mut self) -> Result<(), Error> {
        let store = &self.control.store;
        let due = store.deliveries_due(DUE, self.control.now()).await?;
        let mut room: HashMap<i64, usize> = HashMap::new();
        let mut wanted = Vec::new();
        for (row, webhook) in due {
            let Some(endpoint) = self.endpoints.get(&webhook).filter(|endpoint| !endpoint.has_taken(row)) else {
                continue;
            };
            let room = room.entry(webhook).or_insert_with(|| endpoint.due_room());
            if *room > 0 {
                *room -= 1;
                wanted.push(row);
            }
        }
        for row in store.deliveries_by_id(&wanted).await? {
            if let Some(endpoint) = self.endpoints.get_mut(&row.webhook_id) {
                endpoint.retry(row);
            }
        }
        Ok(())
    }

    /// Begins every attempt that may begin and gets a place.
    fn send(&mut self) {
        if self.told.len() < MOST_UNWRITTEN {
            self.begin(false);
            self.begin(true);
        }
    }

    /// The same for endpoints that are slow, or those that are not. Who got a place longest ago comes first, and all get one
    /// before any gets two.
    fn begin(&mut self, slow: bool) {
        let places = if slow { &self.places.slow } else { &self.places.quick };
        let (free, scarce) = (places.available_permits(), self.places.are_scarce());
        if free == 0 {
            return;
        }
        let waits =
            |endpoint: &&mut Endpoint| (endpoint.standing == Standing::Slow) == slow && endpoint.may_begin(scarce);
        let mut waiting: Vec<_> = self.endpoints.values_mut().filter(waits).collect();
        if waiting.len() > free {
            waiting.select_nth_unstable_by_key(free, |endpoint| endpoint.turn);
            waiting.truncate(free);
        }
        waiting.sort_unstable_by_key(|endpoint| endpoint.turn);
        while !waiting.is_empty() {
            waiting.retain_mut(|endpoint| {
                let Ok(place) = places.clone().try_acquire_owned() else { return false };
                let Some(job) = endpoint.take_next(self.places.are_scarce()) else { return false };
                self.turn += 1;
                endpoint.turn = self.turn;
                let task = Sending {
                    sender: self.sender.clone(),
                    hanging: self.places.hanging.clone(),
                    said: self.said.clone(),
                    control: self.control.clone(),
                    url: endpoint.url.clone(),
                    secrets: endpoint.secrets.clone(),
                    slow,
                };
                tokio::spawn(task.run(job, place));
                true
            });
        }
    }

    fn hear(&mut self, said: Said) {
        match said {
            // The next round hands it out.
            Said::Moved => {}
            Said::Hangs { webhook, epoch } => {
                if let Some(endpoint) = self.endpoints.get_mut(&webhook).filter(|known| known.epoch == epoch) {
                    endpoint.hangs();
                }
            }
            Said::Ended { job, attempt, began } => {
                self.control.metrics.webhook(attempt.succeeded(), attempt.status);
                // Of one that was disabled or deleted meanwhile nothing is written.
                let known = self.endpoints.get_mut(&job.webhook).filter(|known| known.epoch == job.epoch);
                if let Some(endpoint) = known {
                    endpoint.ended(job, &attempt, began, &mut self.told);
                }
            }
        }
    }

    /// Writes what there is to write, unless something is being written.
    fn write(&mut self) {
        if self.writing.is_none() && !self.told.is_empty() {
            self.write_with(Vec::new());
        }
    }

    /// Writes how far idle endpoints are that are this far behind.
    fn save_positions(&mut self, behind: i64) {
        let Some(live) = self.live else { return };
        if self.writing.is_some() {
            return;
        }
        let idle = |endpoint: &&mut Endpoint| endpoint.live && live - endpoint.saved >= behind;
        let mut told: HashMap<i64, Vec<&Told>> = HashMap::new();
        for one in &self.told {
            told.entry(one.webhook).or_default().push(one);
        }
        let progress: Vec<Progress> = self
            .endpoints
            .values_mut()
            .filter(idle)
            .filter(|endpoint| !told.contains_key(&endpoint.id))
            .map(|endpoint| endpoint.progress([], live))
            .collect();
        if !progress.is_empty() || (behind == 1 && !self.told.is_empty()) {
            self.write_with(progress);
        }
    }

    fn write_with(&mut self, mut progress: Vec<Progress>) {
        let told = std::mem::take(&mut self.told);
        let live = self.live.unwrap_or_default();
        let mut of: HashMap<i64, Vec<&Told>> = HashMap::new();
        for one in &told {
            of.entry(one.webhook).or_default().push(one);
        }
        for (id, told) in of {
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                progress.push(endpoint.progress(told, live));
            }
        }
        let (control, now) = (self.control.clone(), self.control.now());
        self.writing = Some(tokio::spawn(async move {
            loop {
                holdfast_failpoint::hit("webhooks.told");
                match control.store.deliveries_record(&told, &progress, BOUNDS, now).await {
                    Err(error) if error.code == holdfast_model::error::Code::Unavailable => {
                        tracing::warn!(%error, "deliveries cannot be written; nothing is lost");
                        tokio::time::sleep(FAULT_PAUSE).await;
                    }
                    result => return (told, result),
                }
            }
        }));
    }

    async fn written(&mut self, (told, result): Written) {
        let recorded = match result {
            Ok(recorded) => recorded,
            Err(error) => {
                // What they were is in the events still; endpoints begin again where the database says.
                tracing::error!(%error, "deliveries could not be written; they are made again");
                self.endpoints.clear();
                self.live = None;
                self.told.clear();
                tokio::time::sleep(FAULT_PAUSE).await;
                self.control.ring_webhooks();
                return;
            }
        };
        for one in &told {
            if let Some(endpoint) = self.endpoints.get_mut(&one.webhook) {
                endpoint.written(one);
            }
        }
        for (webhook, lane) in recorded.clear {
            if let Some(endpoint) = self.endpoints.get_mut(&webhook) {
                endpoint.clear(&lane);
            }
        }
        self.look_for_due |= recorded.due;
        for webhook in recorded.disabled {
            tracing::warn!(webhook, "a webhook was disabled: every delivery failed for five days");
            self.endpoints.remove(&webhook);
        }
        self.write();
    }

    /// Deletes deliveries that are over for long, now and then.
    async fn expire(&mut self) -> Result<(), Error> {
        let now = self.control.now();
        if self.expired_at.is_some_and(|at| now.since(at) < EXPIRE_EVERY) {
            return Ok(());
        }
        self.expired_at = Some(now);
        let before = Timestamp(now.micros().saturating_sub(i64::try_from(KEPT_FOR.as_micros()).unwrap_or(i64::MAX)));
        self.control.store.deliveries_expire(before).await
    }
}

/// Waits for what is being written; for ever when nothing is.
async fn written(writing: &mut Option<JoinHandle<Written>>) -> Written {
    let Some(task) = writing.as_mut() else { return std::future::pending().await };
    let result = task.await;
    *writing = None;
    result.unwrap_or_else(|error| (Vec::new(), Err(Error::internal(error))))
}

/// One attempt.
struct Sending {
    sender: Sender,
    hanging: Arc<Semaphore>,
    said: mpsc::UnboundedSender<Said>,
    control: Control,
    url: Arc<str>,
    secrets: Arc<Secrets>,
    slow: bool,
}

impl Sending {
    /// Sends a message, in a quick place or, of a slow endpoint, a slow one.
    async fn run(self, job: Job, place: OwnedSemaphorePermit) {
        let began = self.control.now();
        let message = job.message.clone();
        let attempt = self.sender.send(&self.url, &message, &self.secrets, began);
        tokio::pin!(attempt);
        let mut place = Some(place);
        let ended = match tokio::time::timeout(MOVES, &mut attempt).await {
            Ok(ended) => ended,
            Err(_) => {
                let (moves, hangs) = (self.hanging.acquire(), tokio::time::sleep(HANGS.saturating_sub(MOVES)));
                tokio::pin!(moves, hangs);
                let mut hanging = None;
                let mut told = false;
                loop {
                    tokio::select! {
                        ended = &mut attempt => break ended,
                        // An error would say that the places were closed, which nobody does.
                        Ok(got) = &mut moves, if !self.slow && hanging.is_none() => {
                            hanging = Some(got);
                            place = None;
                            let _ = self.said.send(Said::Moved);
                        }
                        () = &mut hangs, if !told => {
                            told = true;
                            let _ = self.said.send(Said::Hangs { webhook: job.webhook, epoch: job.epoch });
                        }
                    }
                }
            }
        };
        drop(place);
        let _ = self.said.send(Said::Ended { job, attempt: ended, began });
    }
}
