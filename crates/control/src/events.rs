//! The feed of events, shared by everybody who watches.
//!
//! The one rule: the table is the feed. One reader follows it and hands each new event to all watchers; a watcher that
//! falls behind, or comes back with a position, reads the table itself. So none misses or repeats an event, also across
//! a restart of the server.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::error::Error;
use holdfast_store::feed::Positioned;
use holdfast_store::retention::Base;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::{Control, Scope};

/// Events that a slow watcher may be behind before it reads the table instead.
const WINDOW: usize = 1024;
/// Rows read from the table at once.
const PAGE: i64 = 500;
/// The table is looked at this often, should a bell be missed or another process have written.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// An event on its way to all who watch.
#[derive(Debug)]
pub struct Fed {
    event: Positioned,
    frame: OnceLock<Bytes>,
}

impl Fed {
    /// What streams send of this event: made by the first watcher, shared by the others.
    pub fn frame(&self, make: impl FnOnce(&Positioned) -> Bytes) -> Bytes {
        self.frame.get_or_init(|| make(&self.event)).clone()
    }
}

impl From<Positioned> for Fed {
    fn from(event: Positioned) -> Self {
        Self { event, frame: OnceLock::new() }
    }
}

impl Deref for Fed {
    type Target = Positioned;

    fn deref(&self) -> &Positioned {
        &self.event
    }
}

/// Where new events are handed out.
#[derive(Debug, Clone)]
pub struct Feed(broadcast::Sender<Arc<Fed>>);

impl Default for Feed {
    fn default() -> Self {
        Self(broadcast::channel(WINDOW).0)
    }
}

/// Follows the table until `stop`.
pub async fn run(control: Control, stop: CancellationToken) {
    let mut rung = control.events_bell.subscribe();
    let mut position = None;
    while !stop.is_cancelled() {
        rung.borrow_and_update();
        if let Err(error) = follow(&control, &mut position).await {
            tracing::error!(%error, "the event feed cannot be read");
        }
        tokio::select! {
            _ = rung.changed() => {}
            () = tokio::time::sleep(LONGEST_SLEEP) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn follow(control: &Control, position: &mut Option<i64>) -> Result<(), Error> {
    let mut after = match *position {
        Some(position) => position,
        None => control.store.last_position().await?,
    };
    *position = Some(after);
    if control.feed.0.receiver_count() == 0 {
        let last = control.store.last_position().await?;
        if control.feed.0.receiver_count() == 0 {
            // Nobody watches: whoever comes from now on reads the table up to here and beyond.
            *position = Some(last);
            return Ok(());
        }
    }
    loop {
        let events = control.store.events_after(after, PAGE).await?;
        let Some(last) = events.last() else { return Ok(()) };
        after = last.position;
        for event in events {
            // An error only says that the last watcher has just gone.
            let _ = control.feed.0.send(Arc::new(event.into()));
        }
        *position = Some(after);
    }
}

/// One watcher's view of the feed: the events of what they see, or of one operation.
pub struct Watch {
    control: Control,
    live: broadcast::Receiver<Arc<Fed>>,
    waiting: VecDeque<Arc<Fed>>,
    /// Everything up to here was handed out or is not for this watcher.
    position: i64,
    behind: bool,
    scope: Scope,
    operation: Option<i64>,
    /// What this watcher asked for and has left the database.
    pub left: Option<Base>,
}

impl Control {
    /// Watches from after `position`; `None` is from now on for a scope, from its beginning for an operation.
    pub async fn watch(&self, scope: Scope, operation: Option<i64>, position: Option<i64>) -> Result<Watch, Error> {
        let live = self.feed.0.subscribe();
        // Of one operation either everything is here or nothing.
        let left = match (position, operation) {
            (Some(position), None) => self.store.archive_base().await?.filter(|base| position < base.position),
            _ => None,
        };
        let start = match (position, operation) {
            (Some(position), _) => left.map_or(position, |base| base.position),
            (None, Some(_)) => 0,
            (None, None) => self.store.last_position().await?,
        };
        Ok(Watch {
            control: self.clone(),
            live,
            waiting: VecDeque::new(),
            position: start,
            behind: true,
            scope,
            operation,
            left,
        })
    }
}

impl Watch {
    /// The next event, whenever it comes. May be dropped while it waits: nothing is lost then.
    pub async fn next(&mut self) -> Result<Arc<Fed>, Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            if self.behind {
                self.catch_up().await?;
                continue;
            }
            match self.live.recv().await {
                // Positions have no gaps, so a gap is something that this watcher was not handed.
                Ok(event) if event.position > self.position + 1 => self.behind = true,
                Ok(event) if event.position > self.position => {
                    self.position = event.position;
                    if self.wants(&event) {
                        return Ok(event);
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return Err(Error::internal("the event feed has ended")),
            }
        }
    }

    fn wants(&self, event: &Positioned) -> bool {
        self.scope.admits(event.workspace_id, event.project_id)
            && self.operation.is_none_or(|id| id == event.operation_id)
    }

    /// Reads what is in the table already.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let store = &self.control.store;
        if let Some(operation) = self.operation {
            let seen = store.last_position().await?;
            let events = store.events_of_after(operation, self.position).await?;
            self.position = events.last().map_or(seen, |last| last.position.max(seen)).max(self.position);
            self.waiting.extend(events.into_iter().map(|event| Arc::new(event.into())));
            self.behind = false;
            return Ok(());
        }
        let events = store.events_after(self.position, PAGE).await?;
        self.behind = events.len() as i64 == PAGE;
        if let Some(last) = events.last() {
            self.position = last.position;
        }
        let wanted: Vec<_> =
            events.into_iter().filter(|e| self.wants(e)).map(|event| Arc::new(Fed::from(event))).collect();
        self.waiting.extend(wanted);
        Ok(())
    }
}
