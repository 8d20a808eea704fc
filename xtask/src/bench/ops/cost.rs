//! Figure 5: what audit rows, idempotency keys and the chain cost, put together from the other figures of the run.

use super::{Line, Results};

pub fn lines(results: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(t) = &results.throughput {
        let name = "audit: creates per second of the statements, with against without the audit row";
        lines.push(Line::ratio(name, "/s", t.grouped, t.grouped_without_audit));
    }
    if let Some(a) = &results.accept {
        let (with, without) = (a.statements.median(), a.statements_without_audit.median());
        lines.push(Line::against("audit: statements of an accept, with against without, p50", with, without));
        let (with, without) = (&a.with_key, &a.plain);
        let name = "idempotency: accept with a key against without, p50";
        lines.push(Line::against(name, with.accept.median(), without.accept.median()));
        let name = "idempotency: accept with a key against without, p99";
        lines.push(Line::against(name, with.accept.percentile(99.0), without.accept.percentile(99.0)));
        let name = "idempotency: operations per second, with a key against without";
        lines.push(Line::ratio(name, "/s", with.per_second, without.per_second));
        let (with, without) = (a.statements_with_key.median(), a.statements.median());
        lines.push(Line::against(
            "idempotency: statements of an accept, with a key against without, p50",
            with,
            without,
        ));
    }
    if let (Some(t), Some(seal)) = (&results.throughput, &results.seal) {
        let of_a_create = seal.cpu_us * t.events / 1000.0;
        lines.push(Line::ratio("chain: its part of the processor time of a create", "ms", of_a_create, t.cpu_ms));
    }
    lines
}
