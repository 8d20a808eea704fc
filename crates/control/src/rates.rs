//! How much a caller may ask for in how much time. What holds them to it is `holdfast_api::limits`.
//!
//! The one rule: no limit unless an operator sets one. A server of one's own should not say no to its owner.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// So many in so much time: `600/m` is 600 a minute, at once or one after the other, and one more each tenth of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At most this many at once.
    pub count: NonZeroU32,
    /// After which as many more are free again.
    pub per: Duration,
}

/// The limits of a server. `None`: there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests of a token that change nothing.
    pub reads: Option<Rate>,
    /// Requests of a token that may change something.
    pub mutations: Option<Rate>,
    /// Requests of a client address that were refused for who asked (401).
    pub failures: Option<Rate>,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no rate like \"600/m\", \"20/s\" or \"10000/h\"");
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let per = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let count: NonZeroU32 = count.parse().map_err(|_| wrong())?;
        if count.get() > 1_000_000 {
            return Err(format!("\"{text}\" is more than 1000000 at once"));
        }
        Ok(Self { count, per: Duration::from_secs(per) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_a_number_in_a_time() {
        let rate: Rate = "600/m".parse().expect("a rate");
        assert_eq!((rate.count.get(), rate.per), (600, Duration::from_secs(60)));
        for wrong in ["", "600", "0/s", "-1/s", "1/d", "x/m", "1/ m", "9999999/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
