//! The plot of latency against the number of stored events.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::list::Size;
use crate::bench::stats::Samples;

type Pick = fn(&Size) -> &Samples;

pub fn draw(sizes: &[Size], file: &Path) -> Result<()> {
    // The library's errors borrow what is drawn on.
    try_draw(sizes, file).map_err(|error| anyhow!("draw {}: {error}", file.display()))
}

fn try_draw(sizes: &[Size], file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(file, (800, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = sizes.iter().map(|s| s.page.percentile(99.0).max(s.statement.percentile(99.0))).fold(0.0, f64::max);
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else { return Ok(()) };
    let mut chart = ChartBuilder::on(&area)
        .caption("A page of 50 operations with their events", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d((first.events as f64..last.events as f64).log_scale(), 0.0..most * 1.25)?;
    chart
        .configure_mesh()
        .x_desc("events stored")
        .y_desc("milliseconds")
        .x_label_formatter(&|events| format!("10^{:.0}", events.log10()))
        .light_line_style(WHITE)
        .draw()?;
    let (ours, bare) = (RGBColor(31, 98, 168), RGBColor(150, 150, 150));
    let series: [(&str, RGBColor, bool, Pick, f64); 4] = [
        ("over HTTP, p99", ours, false, |s| &s.page, 99.0),
        ("over HTTP, p50", ours, true, |s| &s.page, 50.0),
        ("statement, p99", bare, false, |s| &s.statement, 99.0),
        ("statement, p50", bare, true, |s| &s.statement, 50.0),
    ];
    for (name, color, solid, of, percent) in series {
        let style = if solid { color.stroke_width(2) } else { color.mix(0.5).stroke_width(2) };
        let points: Vec<(f64, f64)> = sizes.iter().map(|s| (s.events as f64, of(s).percentile(percent))).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, style.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE).border_style(WHITE).draw()?;
    area.present()?;
    Ok(())
}
