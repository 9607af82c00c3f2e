//! Losses. Shapes: N batch, K classes; `logits` [N, K], `labels` `[N]`.

use tch::{Kind, Tensor};

/// Returns the mean cross entropy, in the kind of the logits.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    // `cross_entropy_for_logits` of tch always computes in float32.
    logits.log_softmax(-1, logits.kind()).nll_loss(labels)
}

/// Returns the mean cross entropy with label smoothing: the fraction `smoothing` is spread evenly over all classes.
/// Source: `CrossEntropyLabelSmooth` of the published code; `label_smoothing` of PyTorch is the same.
pub fn smoothed_cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Tensor {
    if smoothing == 0.0 {
        return cross_entropy(logits, labels);
    }
    let log_probabilities = logits.log_softmax(-1, logits.kind());
    let classes = logits.size()[1] as f64;
    let even = log_probabilities.sum_dim_intlist(-1, false, None::<Kind>).mean(None::<Kind>);
    log_probabilities.nll_loss(labels) * (1.0 - smoothing) - even * (smoothing / classes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_spreads_the_label() {
        let logits = Tensor::from_slice(&[1.0, 2.0, -0.5, 0.3, 0.1, 4.0]).view([2, 3]);
        let labels = Tensor::from_slice(&[2i64, 0]);
        for smoothing in [0.1, 0.0] {
            let mut expected = 0.0;
            for (row, label) in [(0, 2), (1, 0)] {
                let row: Vec<f64> = Vec::try_from(logits.get(row)).unwrap();
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                for (class, x) in row.iter().enumerate() {
                    let wanted = smoothing / 3.0 + if class == label { 1.0 - smoothing } else { 0.0 };
                    expected -= wanted * (x - sum.ln()) / 2.0;
                }
            }
            let found = smoothed_cross_entropy(&logits, &labels, smoothing).double_value(&[]);
            assert!((found - expected).abs() < 1e-14, "{smoothing}: {found} {expected}");
        }
    }
}
