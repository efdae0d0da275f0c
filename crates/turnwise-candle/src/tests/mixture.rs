use turnwise_training::{Row, Target, Update};

use super::fixture::{Fixture, norm};
use super::forward::{gradients, tensors};
use super::variants::{experts, perturbed, variants};
use crate::batch::PackedBatch;
use crate::layout::FeedForward;
use crate::trainer::LearnerState;
use crate::{AdamW, Architecture, Decoder, DecoderConfig, Experts, LearnerSettings};

/// A model with many more experts than a short sequence uses.
fn wide(renormalize: bool) -> Decoder {
    let experts = Experts { n_experts: 24, n_chosen: 2, renormalize, ..experts() };
    let architecture = Architecture::Qwen3Moe { attention_bias: false, experts };
    perturbed(DecoderConfig { architecture, ..variants()[4].clone() }, 8)
}

#[test]
fn an_expert_that_is_not_used_has_no_gradient_and_the_router_has_one() {
    for renormalize in [false, true] {
        let model = wide(renormalize);
        let ids = [1, 2, 3, 4];
        let batch = PackedBatch::new(&[crate::batch::ScoredSequence::whole(&ids)]);
        let routed = model.routed(batch);
        let mut used = routed.iter().map(|routed| routed.routing.chosen.clone());
        let used = [used.next().unwrap(), vec![], used.next().unwrap()];
        let (_, gradients) = gradients(&model, &ids);
        let mut n_unused = 0;
        for (name, gradient) in tensors(&model, &gradients) {
            let length = norm(gradient.iter().map(|x| f64::from(*x)));
            if name.contains("mlp.gate.") {
                assert!(length > 1e-6, "{name}: {length}");
            }
            let Some((layer, rest)) = name.split_once(".mlp.experts.") else { continue };
            let layer: usize = layer.rsplit('.').next().unwrap().parse().unwrap();
            let expert: u32 = rest.split('.').next().unwrap().parse().unwrap();
            assert_eq!(used[layer].contains(&expert), length > 0.0, "{name}: {length}");
            n_unused += usize::from(length == 0.0);
        }
        assert!(n_unused >= 3 * 2 * 16);
    }
}

/// `E sum_e f_e P_e`, worked out in double precision from the routers' probabilities.
fn formula(model: &Decoder, ids: &[Vec<u32>]) -> f64 {
    let slices: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let batch = PackedBatch::inputs_only(&slices);
    let multiplicities = batch.multiplicities.clone();
    let Architecture::Qwen3Moe { experts, .. } = &model.config().architecture else { panic!() };
    let (mut used, mut mean) = (vec![0.0; experts.n_experts], vec![0.0; experts.n_experts]);
    let mut n_tokens = 0.0;
    for routed in &model.routed(batch) {
        let tokens = routed.probabilities.chunks(experts.n_experts).zip(&multiplicities);
        for token in tokens.flat_map(|(token, n)| std::iter::repeat_n(token, *n as usize)) {
            n_tokens += 1.0;
            let mut order: Vec<usize> = (0..token.len()).collect();
            order.sort_by(|a, b| token[*b].total_cmp(&token[*a]));
            order[..experts.n_chosen].iter().for_each(|expert| used[*expert] += 1.0);
            mean.iter_mut().zip(token).for_each(|(sum, p)| *sum += f64::from(*p));
        }
    }
    let sum: f64 = used.iter().zip(&mean).map(|(f, p)| f / n_tokens * p / n_tokens).sum();
    sum * experts.n_experts as f64
}

#[test]
fn the_loss_of_uneven_experts_is_its_formula() {
    let ids = [vec![1, 2, 3, 4, 5], vec![], vec![7; 3], (0..50).collect()];
    for model in [wide(true), Fixture::load("qwen3_moe_nonorm").model] {
        let ours = f64::from(model.balance(&ids).unwrap().unwrap());
        assert!((ours - formula(&model, &ids)).abs() < 1e-5);
    }
}

#[test]
fn experts_that_are_equally_probable_cost_as_many_as_a_token_uses() {
    let model = wide(true);
    let mut values = model.values().unwrap();
    for (parameter, values) in model.parameters().iter().zip(&mut values) {
        if parameter.spec.name.contains("mlp.gate.") {
            values.fill(0.0);
        }
    }
    model.set_values(values).unwrap();
    assert!((model.balance(&[vec![1, 2, 3]]).unwrap().unwrap() - 2.0).abs() < 1e-5);
}

fn row(ids: &[u32]) -> Row {
    let targets = (1..ids.len()).map(|position| Target { position, temperature: 1.0 });
    Row { ids: ids.to_vec(), targets: targets.collect(), ..Row::default() }
}

fn trainer(model: Decoder, balance: f64) -> LearnerState {
    let settings = LearnerSettings { balance, ..LearnerSettings::default() };
    LearnerState::new(model, AdamW::default(), settings).unwrap()
}

/// Returns what a learner accumulates when only the load-balancing loss has a gradient.
fn balance_gradient(model: Decoder, rows: &[Row], coefficient: f64) -> Vec<Vec<f32>> {
    let mut trainer = trainer(model, coefficient);
    let (logprobs, pending) = trainer.forward(rows).unwrap();
    trainer.backward(pending, &vec![0.0; logprobs.concat().len()]).unwrap();
    trainer.gradients()
}

#[test]
fn the_gradient_of_uneven_experts_is_a_finite_difference() {
    let ids: Vec<u32> = (0..40).map(|i| (i * i + 3) % 53).collect();
    let rows = [row(&ids)];
    // The last token predicts nothing, so a learner does not compute it.
    let measured = vec![ids[..39].to_vec()];
    let gradients = balance_gradient(wide(true), &rows, 2.0);
    let model = wide(true);
    let values = model.values().unwrap();
    for (index, parameter) in model.parameters().iter().enumerate() {
        if !parameter.spec.name.contains("mlp.gate.") {
            continue;
        }
        let gradient = &gradients[index];
        let length = norm(gradient.iter().map(|x| f64::from(*x)));
        let moved = |step: f64| {
            let mut values = values.clone();
            for (value, gradient) in values[index].iter_mut().zip(gradient) {
                *value += (step / length * f64::from(*gradient)) as f32;
            }
            model.set_values(values).unwrap();
            2.0 * formula(&model, &measured)
        };
        let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        assert!((slope / length - 1.0).abs() < 2e-2, "{slope} {length}");
        model.set_values(values.clone()).unwrap();
    }
    // Without experts there is no load-balancing loss.
    let dense = balance_gradient(Fixture::load("llama").model, &rows, 2.0);
    assert!(dense.iter().flatten().all(|x| *x == 0.0));
}

#[test]
fn training_on_balance_alone_evens_experts_out() {
    let ids: Vec<u32> = (0..50).map(|i| (i * i + 3) % 53).collect();
    let rows = [row(&ids)];
    let model = wide(false);
    let before = model.balance(std::slice::from_ref(&ids)).unwrap().unwrap();
    let mut trainer = trainer(model, 1.0);
    for _ in 0..30 {
        let (_, pending) = trainer.forward(&rows).unwrap();
        trainer.backward(pending, &[0.0; 49]).unwrap();
        trainer.step(Update { learning_rate: 1e-2, max_grad_norm: 1.0 }).unwrap();
    }
    let after = trainer.model().balance(&[ids]).unwrap().unwrap();
    assert!(after < before - 0.1 && after > 1.9, "{before} {after}");
}

/// The layers with experts are those that `modeling_qwen3_moe.py` chooses.
#[test]
fn layers_with_experts_follow_the_configuration() {
    let with = |sparse_step, dense_layers: &[usize]| {
        let experts = Experts { sparse_step, dense_layers: dense_layers.to_vec(), ..experts() };
        let architecture = Architecture::Qwen3Moe { attention_bias: false, experts };
        let config = DecoderConfig { architecture, n_layers: 6, ..variants()[4].clone() };
        let model = Decoder::random(config, 1).unwrap();
        let network = model.detached().unwrap();
        let is_sparse =
            |i: &usize| matches!(network.layers[*i].feed_forward, FeedForward::Mixture(_));
        (0..6).filter(is_sparse).collect::<Vec<_>>()
    };
    assert_eq!(with(1, &[]), [0, 1, 2, 3, 4, 5]);
    assert_eq!(with(2, &[]), [1, 3, 5]);
    assert_eq!(with(2, &[3, 4]), [1, 5]);
    assert_eq!(with(7, &[]), [0; 0]);
}
