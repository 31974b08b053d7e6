//! Permutation-invariant training (Yu and others 2017, arXiv 1607.00325): a model may name the talkers in any order.
//!
//! ```text
//! loss(e, c) = 10·log10((‖c - e‖² + τ·(‖c‖² + ε)) / (‖c‖² + ε))      a negative ratio of signal to error in dB
//! loss       = min over orders π of mean_s loss(e_π(s), c_s)
//! ```
//!
//! `τ` = 0.001 lets what is better than 30 dB rest (Wisdom and others 2020, arXiv 2006.12701). The plain ratio keeps levels,
//! which the scale-invariant one, by which models are judged, does not.

use candle_core::{D, DType, Result, Tensor};

/// τ.
const THRESHOLD: f64 = 1e-3;
/// ε for each sample of a mixture whose mean square is 1.
const SILENCE: f64 = 1e-4;

/// All orders of `0..n`, the given one first.
pub fn orders(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..n {
        all = all
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                let free: Vec<usize> = (0..n).filter(|i| !order.contains(i)).collect();
                free.into_iter().map(move |i| order.iter().copied().chain([i]).collect())
            })
            .collect();
    }
    all
}

/// The order of talkers whose costs, `cost(estimate, truth)`, have the least sum: `order[truth]` is an estimate.
pub fn best_order(n: usize, cost: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    let total =
        |order: &Vec<usize>| order.iter().enumerate().map(|(truth, &est)| cost(est, truth)).sum::<f64>();
    // The first of equal ones: the given order stays where nothing speaks against it.
    orders(n).into_iter().min_by(|a, b| total(a).total_cmp(&total(b))).expect("there is one order at least")
}

/// Loss of estimated against true talkers, `(B, S, samples)` each: a scalar in dB, the lower the better. Signals should
/// have a mean square of about 1 in the sum.
pub fn pit_loss(estimates: &Tensor, truth: &Tensor) -> Result<Tensor> {
    let (b, s, samples) = truth.dims3()?;
    let energy = (truth.sqr()?.sum(D::Minus1)? + SILENCE * samples as f64)?; // (B, S)
    let mut rows = Vec::with_capacity(s);
    for estimate in 0..s {
        let error = estimates.narrow(1, estimate, 1)?.broadcast_sub(truth)?.sqr()?.sum(D::Minus1)?; // (B, S)
        let ratio = ((error + (&energy * THRESHOLD)?)? / &energy)?;
        rows.push((ratio.log()? * (10.0 / std::f64::consts::LN_10))?);
    }
    let losses = Tensor::stack(&rows, 1)?; // (B, estimate, truth)
    let values = losses.detach().to_dtype(DType::F64)?.to_vec3::<f64>()?;
    let mut chosen = vec![0f64; b * s * s];
    for (i, costs) in values.iter().enumerate() {
        for (truth, estimate) in best_order(s, |e, t| costs[e][t]).into_iter().enumerate() {
            chosen[(i * s + estimate) * s + truth] = 1.0 / (b * s) as f64;
        }
    }
    let chosen = Tensor::from_vec(chosen, (b, s, s), losses.device())?.to_dtype(losses.dtype())?;
    (losses * chosen)?.sum_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn orders_are_all_and_the_given_one_is_first() {
        assert_eq!(orders(3), [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]);
        assert_eq!(best_order(2, |_, _| 0.0), [0, 1]);
        assert_eq!(best_order(3, |e, t| if (e + 1) % 3 == t { -1.0 } else { 0.0 }), [2, 0, 1]);
    }

    #[test]
    fn the_loss_is_that_worked_by_hand() -> Result<()> {
        // Energy 4, error 1 in the better order: 10·log10((1 + 0.004) / 4), but for ε.
        let truth = Tensor::new(&[[[1f64, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]]], &Device::Cpu)?;
        let estimates = Tensor::new(&[[[1f64, -1.0, 1.0, -2.0], [1.0, 1.0, 1.0, 2.0]]], &Device::Cpu)?;
        let loss = pit_loss(&estimates, &truth)?.to_scalar::<f64>()?;
        let energy = 4.0 + 4.0 * SILENCE;
        assert!((loss - 10.0 * ((1.0 + THRESHOLD * energy) / energy).log10()).abs() < 1e-9, "{loss}");
        let best = pit_loss(&truth, &truth)?.to_scalar::<f64>()?;
        assert!((best + 30.0).abs() < 1e-9, "{best}");
        Ok(())
    }
}
