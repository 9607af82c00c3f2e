//! Golden file of the Dirichlet distribution: concentration, pathwise gradients, KL, pruning.

use super::comparison::{Comparison, Finding};
use super::golden::{Golden, rows};
use super::tolerances::EXACT;
use crate::error::Result;
use crate::method::dirichlet::{self, ThetaSample};
use crate::space::Mask;
use tch::{Kind, Tensor};

/// Compares all values of the file, in float64 whatever the precision of networks.
pub fn distribution(golden: &Golden) -> Result<Vec<Finding>> {
    let exact = |kind| Comparison::new(kind, EXACT, 0.0);
    let tensor = |name: &str| golden.tensor(name);
    let eta = tensor("eta")?;
    let beta = dirichlet::concentration(eta);
    let plain = ThetaSample::from_drawn(tensor("theta")?.copy(), beta.copy(), &eta.ones_like());
    let masked_eta = tensor("masked.eta")?;
    let mask = tensor("masked.mask")?.to_kind(Kind::Double);
    let masked = ThetaSample::from_drawn(
        tensor("masked.sample_before_mask")?.copy(),
        dirichlet::concentration(masked_eta),
        &mask,
    );
    let mut kept = rows(tensor("prune.eta_before")?)?;
    let full = Mask::full(kept.len(), kept[0].len());
    let theirs = golden.mask("prune.mask", eta)?;
    let keep = theirs.0[0].iter().filter(|&&kept| kept).count();
    let ours = dirichlet::prune(&mut kept, &full, keep);
    let mut mask_finding = exact("pruning: mask");
    mask_finding.equal("", ours == theirs);
    let kept: Vec<Tensor> = kept.iter().map(|row| Tensor::from_slice(row)).collect();
    Ok(vec![
        exact("concentration").one(&beta, tensor("concentration")?),
        exact("pathwise gradient").one(&plain.grad_eta(eta, tensor("grad.theta")?), tensor("grad.eta")?),
        exact("masked theta").one(&masked.theta, tensor("masked.theta")?),
        exact("masked gradient")
            .one(&masked.grad_eta(masked_eta, tensor("masked.grad.theta")?), tensor("masked.grad.eta")?),
        exact("KL").one(&dirichlet::kl(eta), tensor("kl")?),
        exact("gradient of KL").one(&dirichlet::kl_grad(eta), tensor("kl.grad.eta")?),
        mask_finding.finding(),
        exact("pruning: eta").one(&Tensor::stack(&kept, 0), tensor("prune.eta_after")?),
    ])
}
