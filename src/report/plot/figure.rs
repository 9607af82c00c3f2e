//! Draws the trajectory figure, for SVG and PNG, on a white background.

use super::trajectory::{Epoch, Trajectory};
use crate::report::error::{Error, Result};
use image::imageops::{FilterType, resize};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use std::io::Cursor;
use std::path::Path;

/// Size in points; the PNG has two pixels per point.
const SIZE: (u32, u32) = (860, 700);
const PNG_SCALE: u32 = 2;
/// Drawn in finer units, because the library rounds coordinates to integers: SVG coordinates are multiples of a quarter
/// point, and the PNG is downsampled, which antialiases the hard edges of the library.
const SCALE: u32 = 4;
/// Left edge of frames and text, points.
const LEFT: f64 = 66.0;

const INK: RGBColor = RGBColor(38, 38, 38);
const GREY: RGBColor = RGBColor(110, 110, 110);
const FRAME: RGBColor = RGBColor(225, 225, 225);
const RANGE: RGBColor = RGBColor(208, 225, 242);
const QUARTILES: RGBColor = RGBColor(133, 182, 220);
const MEDIAN: RGBColor = RGBColor(33, 102, 172);
const CHOSEN: RGBColor = RGBColor(202, 72, 8);

type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Failure<DB> = DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>;

/// Renders the figure as SVG. `path` is used in errors only.
pub fn svg(trajectory: &Trajectory, path: &Path) -> Result<String> {
    let (width, height) = (SIZE.0 * SCALE, SIZE.1 * SCALE);
    let mut text = String::new();
    register_fonts();
    draw(SVGBackend::with_string(&mut text, (width, height)).into_drawing_area(), trajectory)
        .map_err(|error| Error::PlotDraw { path: path.to_owned(), what: error.to_string() })?;
    let size = |(width, height)| format!("width=\"{width}\" height=\"{height}\"");
    Ok(text.replacen(&size((width, height)), &size(SIZE), 1))
}

/// Renders the figure as a PNG file. `path` is used in errors only.
pub fn png(trajectory: &Trajectory, path: &Path) -> Result<Vec<u8>> {
    let failed = |what: String| Error::PlotDraw { path: path.to_owned(), what };
    let (width, height) = (SIZE.0 * SCALE, SIZE.1 * SCALE);
    let mut pixels = vec![0; (3 * width * height) as usize];
    register_fonts();
    draw(BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area(), trajectory)
        .map_err(|error| failed(error.to_string()))?;
    let large = image::RgbImage::from_raw(width, height, pixels).expect("a buffer of that size");
    let image = resize(&large, SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE, FilterType::Triangle);
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).map_err(|error| failed(error.to_string()))?;
    Ok(bytes.into_inner())
}

/// Registers the embedded font, so that no installed font is required.
fn register_fonts() {
    // Fails only for an invalid font; the embedded one is valid.
    let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
}

fn px(points: f64) -> u32 {
    (points * SCALE as f64).round() as u32
}

fn text_style(points: f64, colour: RGBColor, horizontal: HPos) -> TextStyle<'static> {
    TextStyle {
        font: ("sans-serif", px(points)).into_font(),
        color: colour.to_backend_color(),
        pos: Pos::new(horizontal, VPos::Center),
    }
}

fn draw<DB: DrawingBackend>(
    root: DrawingArea<DB, Shift>,
    trajectory: &Trajectory,
) -> Result<(), Failure<DB>> {
    root.fill(&WHITE)?;
    let (panels, legend_area) = root.split_vertically(px(SIZE.1 as f64 - 72.0));
    let (upper, lower) = panels.split_vertically(px(390.0));
    let title = format!("{}: search trajectory", trajectory.dataset.title());
    let corner = (px(LEFT) as i32, px(22.0) as i32);
    upper.draw(&Text::new(title, corner, text_style(15.0, INK, HPos::Left)))?;
    panel(&upper, trajectory, whole_range(trajectory), PanelPlace::Upper)?;
    panel(&lower, trajectory, good_range(trajectory), PanelPlace::Lower)?;
    legend(&legend_area, trajectory)?;
    root.present()
}

#[derive(Clone, Copy, PartialEq)]
enum PanelPlace {
    Upper,
    Lower,
}

/// Draws one frame with everything that lies in `range` (percent).
fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    trajectory: &Trajectory,
    range: (f64, f64),
    place: PanelPlace,
) -> Result<(), Failure<DB>> {
    let x = x_range(&trajectory.epochs);
    let lower = place == PanelPlace::Lower;
    let mut chart = ChartBuilder::on(area)
        .margin_top(px(if lower { 6.0 } else { 54.0 }))
        .margin_right(px(24.0))
        .x_label_area_size(px(if lower { 44.0 } else { 24.0 }))
        .y_label_area_size(px(LEFT))
        .build_cartesian_2d(x.0..x.1, range.0..range.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FRAME.stroke_width(px(0.75)))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.stroke_width(px(1.0)))
        .x_desc(if lower { "Search epoch" } else { "" })
        .axis_desc_style(("sans-serif", px(13.5)).into_font().color(&INK))
        .label_style(("sans-serif", px(12.0)).into_font().color(&INK))
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| if y.fract() == 0.0 { format!("{y:.0}") } else { format!("{y:.1}") })
        .y_label_offset(px(1.2))
        .x_labels(11)
        .y_labels(if lower { 6 } else { 10 })
        .set_all_tick_mark_size(px(4.0))
        .draw()?;
    let upright = text_style(13.5, INK, HPos::Center).transform(FontTransform::Rotate270);
    let (_, frame) = chart.plotting_area().get_pixel_range();
    // `frame` is in pixels of the whole figure, `area` draws relative to its own corner.
    let middle = (frame.start + frame.end) / 2 - area.get_pixel_range().1.start;
    area.draw(&Text::new("Test accuracy (%)", (px(18.0) as i32, middle), upright))?;
    curves(&mut chart, trajectory, x, range.0)?;
    stages(&mut chart, area, trajectory, (x, range), place)
}

/// Range of epochs; a single epoch is centred.
fn x_range(epochs: &[Epoch]) -> (f64, f64) {
    let (first, last) = (epochs[0].epoch as f64, epochs[epochs.len() - 1].epoch as f64);
    if first < last { (first, last) } else { (first - 0.5, last + 0.5) }
}

/// From below the minimum to above the optimum, in multiples of ten percent.
fn whole_range(trajectory: &Trajectory) -> (f64, f64) {
    let minima = trajectory.epochs.iter().map(|epoch| epoch.sampled.min.min(epoch.accuracy));
    let least = minima.fold(trajectory.median, f64::min);
    ((least / 10.0).floor() * 10.0, (trajectory.optimum / 10.0 + 0.1).ceil() * 10.0)
}

/// From the median of the search space to its optimum, where a good search ends; whole percents.
fn good_range(trajectory: &Trajectory) -> (f64, f64) {
    ((trajectory.median - 0.05).floor(), (trajectory.optimum + 0.05).ceil())
}

fn curves<DB: DrawingBackend>(
    chart: &mut Chart<'_, DB>,
    trajectory: &Trajectory,
    (left, right): (f64, f64),
    bottom: f64,
) -> Result<(), Failure<DB>> {
    let line = |value: &dyn Fn(&Epoch) -> f64| -> Vec<(f64, f64)> {
        let points = trajectory.epochs.iter().map(|epoch| (epoch.epoch as f64, value(epoch)));
        if trajectory.epochs.len() > 1 {
            return points.collect();
        }
        // A single epoch has no width.
        points.flat_map(|(x, y)| [(x - 0.1, y), (x + 0.1, y)]).collect()
    };
    let band = |low: &dyn Fn(&Epoch) -> f64, high: &dyn Fn(&Epoch) -> f64| -> Vec<(f64, f64)> {
        let (low, high) = (line(low), line(high));
        let first = low[0];
        let around: Vec<_> = low.into_iter().chain(high.into_iter().rev()).chain([first]).collect();
        above(&around, bottom).concat()
    };
    let range = band(&|epoch| epoch.sampled.min, &|epoch| epoch.sampled.max);
    chart.draw_series([Polygon::new(range, RANGE)])?;
    let quartiles = band(&|epoch| epoch.sampled.lower_quartile, &|epoch| epoch.sampled.upper_quartile);
    chart.draw_series([Polygon::new(quartiles, QUARTILES)])?;
    let across = |y: f64| [(left, y), (right, y)].into_iter();
    let thin = GREY.stroke_width(px(1.2));
    chart.draw_series(DashedLineSeries::new(across(trajectory.median), px(1.5), px(3.0), thin))?;
    chart.draw_series(DashedLineSeries::new(across(trajectory.optimum), px(7.0), px(4.0), thin))?;
    for (line, style) in [
        (line(&|epoch| epoch.sampled.median), MEDIAN.stroke_width(px(1.2))),
        (line(&|epoch| epoch.accuracy), CHOSEN.stroke_width(px(2.2))),
    ] {
        chart.draw_series(above(&line, bottom).into_iter().map(|part| PathElement::new(part, style)))?;
    }
    Ok(())
}

/// Returns the parts of a curve that are not below `bottom`, cut at the crossings, because the library draws beyond its
/// frames. Concatenated, the parts of a closed curve enclose what the curve enclosed above `bottom`.
fn above(points: &[(f64, f64)], bottom: f64) -> Vec<Vec<(f64, f64)>> {
    let mut parts: Vec<Vec<(f64, f64)>> = vec![Vec::new()];
    for (at, &(x, y)) in points.iter().enumerate() {
        let (x_before, y_before) = points[at.saturating_sub(1)];
        let part = parts.last_mut().expect("never empty");
        if (y_before < bottom) != (y < bottom) {
            part.push((x_before + (x - x_before) * (bottom - y_before) / (y - y_before), bottom));
        }
        if y >= bottom {
            part.push((x, y));
        } else if !part.is_empty() {
            parts.push(Vec::new());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Draws a line where a stage begins and its name above the frame.
fn stages<DB: DrawingBackend>(
    chart: &mut Chart<'_, DB>,
    area: &DrawingArea<DB, Shift>,
    trajectory: &Trajectory,
    ((left, right), (bottom, top)): ((f64, f64), (f64, f64)),
    place: PanelPlace,
) -> Result<(), Failure<DB>> {
    let several = trajectory.stages.len() > 1;
    let mut free_from = 0;
    for stage in &trajectory.stages {
        let begins = if stage.stage > 1 { (stage.first_epoch as f64 - 0.5).clamp(left, right) } else { left };
        if stage.stage > 1 {
            let points = [(begins, bottom), (begins, top)].into_iter();
            chart.draw_series(DashedLineSeries::new(points, px(4.0), px(4.0), INK.stroke_width(px(1.0))))?;
        }
        if place == PanelPlace::Lower {
            continue;
        }
        let name = match stage.k_and_ops {
            Some((k, ops)) if several => format!("stage {}: k = {k}, {ops} operations", stage.stage),
            Some((k, ops)) => format!("k = {k}, {ops} operations"),
            None if several => format!("stage {}", stage.stage),
            None => continue,
        };
        let style = text_style(11.5, GREY, HPos::Left);
        let width = area.estimate_text_size(&name, &style)?.0 as i32;
        // At the right edge, the name is moved to the left of the line.
        let x = chart.backend_coord(&(begins, top)).0.min(chart.backend_coord(&(right, top)).0 - width);
        // A name that would overlap the previous one is omitted.
        if x >= free_from {
            area.draw(&Text::new(name, (x, px(42.0) as i32), style))?;
            free_from = x + width + px(12.0) as i32;
        }
    }
    Ok(())
}

/// Draws the legend, in two rows of three.
fn legend<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    trajectory: &Trajectory,
) -> Result<(), Failure<DB>> {
    let last = &trajectory.epochs[trajectory.epochs.len() - 1];
    let entries = [
        format!("selected by the Dirichlet mean (last: {:.2} %)", last.accuracy),
        format!("{} sampled architectures: min to max", trajectory.num_samples),
        format!("best of the space, {:.2} %", trajectory.optimum),
        "median of the samples".to_string(),
        "quartiles of the samples".to_string(),
        format!("median of the space, {:.2} %", trajectory.median),
    ];
    let columns = [LEFT, 366.0, 640.0];
    for (number, entry) in entries.into_iter().enumerate() {
        let (x, y) = (columns[number % 3], if number < 3 { 16.0 } else { 40.0 });
        let at = |dx: f64, dy: f64| (px(x + dx) as i32, (px(y) as f64 + dy * SCALE as f64) as i32);
        let line = [at(0.0, 0.0), at(26.0, 0.0)];
        match number {
            0 => area.draw(&PathElement::new(line, CHOSEN.stroke_width(px(2.2))))?,
            1 => area.draw(&Rectangle::new([at(0.0, -6.0), at(26.0, 6.0)], RANGE.filled()))?,
            2 => {
                let dashes = [
                    [at(0.0, 0.0), at(7.0, 0.0)],
                    [at(10.0, 0.0), at(17.0, 0.0)],
                    [at(20.0, 0.0), at(26.0, 0.0)],
                ];
                dashes
                    .iter()
                    .try_for_each(|dash| area.draw(&PathElement::new(*dash, GREY.stroke_width(px(1.2)))))?;
            }
            3 => area.draw(&PathElement::new(line, MEDIAN.stroke_width(px(1.2))))?,
            4 => area.draw(&Rectangle::new([at(0.0, -6.0), at(26.0, 6.0)], QUARTILES.filled()))?,
            _ => {
                let dots = (0..6).map(|dot| 4.5 * dot as f64).map(|dx| [at(dx, 0.0), at(dx + 1.5, 0.0)]);
                dots.into_iter()
                    .try_for_each(|dot| area.draw(&PathElement::new(dot, GREY.stroke_width(px(1.2)))))?;
            }
        }
        area.draw(&Text::new(entry, at(34.0, 1.2), text_style(11.5, INK, HPos::Left)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_cut_at_the_bottom() {
        let curve = [(0.0, 0.0), (1.0, 2.0), (2.0, 2.0), (3.0, 0.0), (4.0, 0.0), (5.0, 4.0)];
        let parts = above(&curve, 1.0);
        assert_eq!(
            parts,
            [vec![(0.5, 1.0), (1.0, 2.0), (2.0, 2.0), (2.5, 1.0)], vec![(4.25, 1.0), (5.0, 4.0)]]
        );
        assert_eq!(above(&curve, 0.0), [curve.to_vec()]);
        assert!(above(&curve, 9.0).is_empty());
    }
}
