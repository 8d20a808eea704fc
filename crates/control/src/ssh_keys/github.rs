//! The public keys of a GitHub profile: `<base>/<user>.keys`, one a line.
//!
//! The one rule: nothing is asked of any other host than the configured one, an answer is read to a bound and for a time,
//! and whatever goes wrong ends in an error that says whether the profile or the network is at fault.

use std::time::Duration;

use holdfast_model::error::{Code, Error};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, StatusCode, Url};

/// Bytes of an answer. A key has a few hundred.
const LONGEST: usize = 256 * 1024;
const REDIRECTS: usize = 3;

/// The lines of a profile's keys. `name` must have passed [`check_name`]. `patience` is for all of it: connecting,
/// redirects, reading.
pub async fn keys(base: &str, name: &str, patience: Duration) -> Result<Vec<String>, Error> {
    let url = Url::parse(&format!("{base}/{name}.keys")).map_err(|e| {
        unreachable("the address of GitHub in this server's configuration is not valid").with_internal(e)
    })?;
    // A proxy of the environment is for the world outside, not for a server on this host.
    let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let builder = if loopback { Client::builder().no_proxy() } else { Client::builder() };
    let client = builder.timeout(patience).redirect(Policy::custom(same_host)).build().map_err(Error::internal)?;
    let failed = |error: reqwest::Error| {
        let why = if error.is_timeout() { "it does not answer in time" } else { "it cannot be reached from here" };
        // Without its address: the cause is for the log, and the log has the request.
        unreachable(why).with_internal(chain(&error.without_url()))
    };
    let mut answer = client.get(url).send().await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(Error::new(Code::GithubUserNotFound, format!("GitHub knows no user \"{name}\".")));
        }
        status if status.is_redirection() => return Err(unreachable("it sends to another host")),
        status => return Err(unreachable(&format!("it answers {}", status.as_u16()))),
    }
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > LONGEST {
            return Err(unreachable(&format!("its answer is longer than {LONGEST} bytes")));
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| unreachable("its answer is not text"))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn same_host(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let origin = |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
    let first = attempt.previous().first().map(origin);
    if attempt.previous().len() <= REDIRECTS && first == Some(origin(attempt.url())) {
        return attempt.follow();
    }
    attempt.stop()
}

fn unreachable(why: &str) -> Error {
    Error::new(Code::GithubUnreachable, format!("The keys could not be fetched from GitHub: {why}."))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(|cause| cause.to_string()).collect::<Vec<_>>().join(": ")
}

/// What GitHub allows as a name, the ones of managed users (`name_company`) too; it becomes a part of a path.
pub fn check_name(name: &str) -> Result<(), Error> {
    let fits = (1..=39).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && !name.starts_with('-');
    if fits {
        return Ok(());
    }
    let why = "must be a GitHub username: 1 to 39 letters, digits, dashes and underscores";
    Err(Error::field("body", "github_username", "string_pattern_mismatch", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_part_of_a_path() {
        for name in ["octocat", "a", "A-b-1", "name_company", &"x".repeat(39)] {
            check_name(name).expect(name);
        }
        for name in ["", "..", "a/b", "a?b", "a#b", "a%2e", "a b", "-a", "é", "a\n", &"x".repeat(40)] {
            check_name(name).expect_err(name);
        }
    }
}
