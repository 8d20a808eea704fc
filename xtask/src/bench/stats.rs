//! Figures out of samples. The one rule: medians and percentiles of what was measured, never an average that one slow run
//! moves.

use serde_json::{Value, json};

/// Sorted samples in milliseconds.
#[derive(Debug, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn new(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that `percent` of all are not above; 0 without samples.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).or(self.0.last()).copied().unwrap_or(0.0)
    }

    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    pub fn json(&self) -> Value {
        let round = |ms: f64| (ms * 100.0).round() / 100.0;
        json!({
            "n": self.0.len(), "min": round(self.percentile(0.0)), "p50": round(self.median()),
            "p99": round(self.percentile(99.0)), "max": round(self.percentile(100.0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let samples = Samples::new((1..=100).rev().map(f64::from).collect());
        assert_eq!((samples.median(), samples.percentile(99.0), samples.percentile(100.0)), (50.0, 99.0, 100.0));
        assert_eq!(samples.percentile(0.0), 1.0);
        assert_eq!(Samples::new(Vec::new()).median(), 0.0);
    }
}
