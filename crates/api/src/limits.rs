//! Rate limits: so many requests of a token in so much time, and so many failed attempts of a client address.
//!
//! The one rule: what is kept in memory grows with the tokens that are good and the addresses that are bad, never with what
//! strangers send. A key is counted only when it has been found good; one that has not is looked up first, and counted
//! against its address if it is wrong. Whatever nobody needs any more is let go once a minute.
//!
//! ```text
//!   key known to be good   -> the token's limit -> the handler
//!   key not known, or none -> the address' failures: too many? 429 -> looked up -> good: as above; wrong: 401, and counted
//! ```
//! So an address that guesses is held up, and those behind the same address whose keys are good are not. A refusal costs no
//! look-up and leaves no audit row; the log of requests has it. The answer says in `Retry-After` when the next request would
//! be let through, and every answer under a limit says in `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` how
//! much is left and in how many seconds it is all there again.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use holdfast_control::rates::{Rate, Rates};
use holdfast_model::error::{Code, Error};

use crate::App;
use crate::credential::{Credential, client_address};
use crate::error::Failure;

/// How often what nobody needs any more is let go.
const SWEEP: Duration = Duration::from_secs(60);
/// A token that was not used for this long is looked up again before it is counted.
const KNOWN: Duration = Duration::from_secs(3600);

/// Names a token, or a session, without being it.
type TokenId = [u8; 16];

/// What is counted, and what was found out. One for each server.
pub struct Limits {
    reads: Option<Bucket<TokenId>>,
    mutations: Option<Bucket<TokenId>>,
    failures: Option<Bucket<IpAddr>>,
    found: Mutex<Found>,
}

struct Found {
    /// Tokens that were good, and when they were used last.
    tokens: HashMap<TokenId, Instant>,
    /// Addresses that failed too often, and until when they are not listened to.
    blocked: HashMap<IpAddr, Instant>,
    swept: Instant,
}

/// What a limit says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    limit: u32,
    remaining: u32,
    /// Until all of the limit is there again.
    reset: Duration,
    /// Until one request more is let through; `None` for one that was.
    wait: Option<Duration>,
}

/// One limit, counted for each key.
struct Bucket<K: Hash + Eq + Clone> {
    rate: Rate,
    limiter: RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock, StateInformationMiddleware>,
    clock: DefaultClock,
}

impl<K: Hash + Eq + Clone> Bucket<K> {
    fn new(rate: Rate) -> Option<Self> {
        let quota = Quota::with_period(rate.per / rate.count.get())?.allow_burst(rate.count);
        let limiter = RateLimiter::keyed(quota).with_middleware::<StateInformationMiddleware>();
        Some(Self { rate, limiter, clock: DefaultClock::default() })
    }

    /// Counts one request of this key.
    fn count(&self, key: &K) -> Told {
        let limit = self.rate.count.get();
        let each = self.rate.per / limit;
        match self.limiter.check_key(key) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                Told { limit, remaining, reset: each * (limit - remaining.min(limit)), wait: None }
            }
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                Told { limit, remaining: 0, reset: wait + each * (limit - 1), wait: Some(wait) }
            }
        }
    }

    /// Lets go of keys whose limit is whole again: they are as if they had never come.
    fn sweep(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

impl Limits {
    /// `None` when nothing is limited.
    pub fn new(rates: Rates) -> Option<Self> {
        if rates == Rates::default() {
            return None;
        }
        let found = Found { tokens: HashMap::new(), blocked: HashMap::new(), swept: Instant::now() };
        Some(Self {
            reads: rates.reads.and_then(Bucket::new),
            mutations: rates.mutations.and_then(Bucket::new),
            failures: rates.failures.and_then(Bucket::new),
            found: Mutex::new(found),
        })
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// True for a token that was good lately; notes that it is used.
    fn is_known(&self, token: &TokenId, now: Instant) -> bool {
        self.found().tokens.get_mut(token).map(|used| *used = now).is_some()
    }

    /// How long an address is not listened to any more, if it is not.
    fn blocked(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let until = *self.found().blocked.get(&address?)?;
        until.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Counts a failed attempt. Says how long the address has to wait when that was one too many.
    fn failed(&self, address: Option<IpAddr>, now: Instant) -> Option<Told> {
        let address = address?;
        let told = self.failures.as_ref()?.count(&address);
        let wait = told.wait?;
        self.found().blocked.insert(address, now + wait);
        Some(told)
    }

    /// Counts a request of a token that is good. `None` when its kind has no limit.
    fn count(&self, token: &TokenId, method: &Method) -> Option<Told> {
        let bucket = if method.is_safe() { &self.reads } else { &self.mutations };
        bucket.as_ref().map(|bucket| bucket.count(token))
    }

    /// Once a minute, lets go of what nobody needs any more.
    fn sweep(&self, now: Instant) {
        {
            let mut found = self.found();
            if now.saturating_duration_since(found.swept) < SWEEP {
                return;
            }
            found.swept = now;
            found.tokens.retain(|_, used| now.saturating_duration_since(*used) < KNOWN);
            found.tokens.shrink_to_fit();
            found.blocked.retain(|_, until| *until > now);
            found.blocked.shrink_to_fit();
        }
        for bucket in [&self.reads, &self.mutations].into_iter().flatten() {
            bucket.sweep();
        }
        if let Some(bucket) = &self.failures {
            bucket.sweep();
        }
    }
}

/// The layer: see the module's drawing.
pub async fn layer(State((app, limits)): State<(App, Arc<Limits>)>, request: Request, next: Next) -> Response {
    let now = Instant::now();
    limits.sweep(now);
    let address = client_address(request.extensions()).map(network);
    let token = match Credential::of(request.method(), request.headers(), request.extensions()) {
        Some(credential) => {
            let token = credential.digest();
            if limits.is_known(&token, now) {
                Some(token)
            } else if let Some(wait) = limits.blocked(address, now) {
                return blocked(wait);
            } else if is_good(&app, &credential).await {
                limits.found().tokens.insert(token, now);
                Some(token)
            } else {
                // The handler says what is wrong with it.
                None
            }
        }
        None => match limits.blocked(address, now) {
            Some(wait) => return blocked(wait),
            None => None,
        },
    };
    let told = token.and_then(|token| limits.count(&token, request.method()));
    if let Some(told) = told
        && let Some(wait) = told.wait
    {
        let what = if request.method().is_safe() { "requests" } else { "requests that change something" };
        let message = format!("This token may send {} {what} at once; this is one too many.", told.limit);
        return refused(message, wait, Some(told));
    }
    let mut response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED {
        if let Some(token) = token {
            // Good until now: it was revoked, or it has expired.
            limits.found().tokens.remove(&token);
        }
        if let Some(wait) = limits.failed(address, now).and_then(|told| told.wait) {
            return blocked(wait);
        }
    }
    if let Some(told) = told {
        told.write(response.headers_mut());
    }
    response
}

/// Whether it is somebody's, whatever they may do with it.
async fn is_good(app: &App, credential: &Credential) -> bool {
    match credential.holder(app).await {
        Ok(_) => true,
        Err(error) => error.code == Code::Forbidden,
    }
}

impl Told {
    fn write(&self, headers: &mut HeaderMap) {
        let seconds = |time: Duration| HeaderValue::from(whole_seconds(time));
        headers.insert(HeaderName::from_static("ratelimit-limit"), HeaderValue::from(self.limit));
        headers.insert(HeaderName::from_static("ratelimit-remaining"), HeaderValue::from(self.remaining));
        headers.insert(HeaderName::from_static("ratelimit-reset"), seconds(self.reset));
    }
}

/// Rounded up: who waits this long has waited long enough.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn blocked(wait: Duration) -> Response {
    let message = "Too many requests from this address were without a valid key or password.".to_owned();
    refused(message, wait, None)
}

fn refused(message: String, wait: Duration, told: Option<Told>) -> Response {
    let seconds = whole_seconds(wait).max(1);
    let error = Error::new(Code::RateLimited, format!("{message} Try again in {seconds} s."));
    let mut response = Failure(error).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    if let Some(told) = told {
        told.write(response.headers_mut());
    }
    response
}

/// What counts as one address: of IPv6 the /64 that a single host is given.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(reads: &str, failures: &str) -> Limits {
        let rate = |text: &str| text.parse().ok();
        Limits::new(Rates { reads: rate(reads), mutations: None, failures: rate(failures) }).expect("limits")
    }

    #[test]
    fn what_is_left_goes_down_to_nothing_and_says_when_it_is_back() {
        let limits = limits("3/h", "");
        let count = |token: u8| limits.count(&[token; 16], &Method::GET).expect("a limit");
        let left: Vec<u32> = (0..3).map(|_| count(1).remaining).collect();
        assert_eq!(left, [2, 1, 0]);
        let refused = count(1);
        let wait = refused.wait.expect("one too many");
        assert!(wait <= Duration::from_secs(1200) && wait > Duration::from_secs(1190), "{wait:?}");
        assert!(refused.reset <= Duration::from_secs(3600) && refused.reset > Duration::from_secs(3590), "{refused:?}");
        assert_eq!(count(2).remaining, 2, "another token has its own");
        assert_eq!(limits.count(&[1; 16], &Method::POST), None, "mutations have no limit here");
    }

    #[test]
    fn an_address_is_held_up_after_its_failures_and_listened_to_again() {
        let limits = limits("", "2/h");
        let (now, address) = (Instant::now(), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!((limits.failed(address, now), limits.failed(address, now)), (None, None));
        assert_eq!(limits.blocked(address, now), None);
        let wait = limits.failed(address, now).and_then(|told| told.wait).expect("one too many");
        assert_eq!(limits.blocked(address, now), Some(wait));
        assert_eq!(limits.blocked(Some(IpAddr::from([192, 0, 2, 2])), now), None);
        assert_eq!(limits.blocked(address, now + wait), None);
        assert_eq!(limits.failed(None, now), None, "an address that nobody knows is nobody's");
    }

    #[test]
    fn what_nobody_needs_is_let_go() {
        let limits = limits("1000000/s", "1000000/s");
        let now = Instant::now();
        for n in 0..10_000_u32 {
            let token: TokenId = std::array::from_fn(|i| n.to_be_bytes()[i % 4]);
            limits.found().tokens.insert(token, now);
            limits.count(&token, &Method::GET);
            limits.failed(Some(IpAddr::from(n.to_be_bytes())), now);
            limits.found().blocked.insert(IpAddr::from(n.to_be_bytes()), now);
        }
        let size = |limits: &Limits| {
            let found = limits.found();
            let buckets = limits.reads.as_ref().map_or(0, |b| b.limiter.len());
            let failures = limits.failures.as_ref().map_or(0, |b| b.limiter.len());
            (found.tokens.len(), found.blocked.len(), buckets, failures)
        };
        assert_eq!(size(&limits), (10_000, 10_000, 10_000, 10_000));
        limits.sweep(now + SWEEP / 2);
        assert_eq!(size(&limits).0, 10_000, "not more often than once a minute");
        limits.sweep(now + SWEEP);
        assert_eq!(size(&limits), (10_000, 0, 0, 0));
        limits.sweep(now + KNOWN + SWEEP);
        assert_eq!(size(&limits), (0, 0, 0, 0));
    }

    #[test]
    fn a_host_is_one_address() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
