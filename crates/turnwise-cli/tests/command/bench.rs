use serde_json::Value;

use crate::support::turnwise;

/// The smallest measurable model, once.
const TINY: [&str; 17] = [
    "--json",
    "--vocab-size",
    "50",
    "--hidden-size",
    "16",
    "--intermediate-size",
    "32",
    "--layers",
    "1",
    "--heads",
    "2",
    "--kv-heads",
    "1",
    "--head-dim",
    "8",
    "--repetitions",
    "2",
];

fn measured(name: &str, sizes: &[&str]) -> Value {
    let ended = turnwise(&[&["bench", name], &TINY[..], sizes].concat(), "");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().count(), 1);
    serde_json::from_str(&ended.stdout).expect("a line of JSON")
}

fn each(report: &Value, key: &str) -> Vec<f64> {
    let values = report[key].as_array().unwrap_or_else(|| panic!("{key} of {report}"));
    values.iter().map(|value| value.as_f64().expect("a number")).collect()
}

#[test]
fn a_training_step_is_measured_part_by_part_against_the_best_matrix_product() {
    let report = measured("train", &["--batch", "2", "--length", "6", "--threads", "1"]);
    assert_eq!(report["machine"]["threads"], 1);
    assert_eq!(
        (&report["sizes"]["padded_tokens"], &report["sizes"]["distinct_tokens"]),
        (&12.into(), &12.into())
    );
    let (steps, tokens) = (each(&report, "step_s"), each(&report, "tokens_per_s"));
    for (index, (seconds, rate)) in steps.iter().zip(&tokens).enumerate() {
        assert!((rate * seconds - 12.0).abs() < 1e-6);
        let passes =
            ["forward_s", "backward_s", "optimizer_s"].map(|pass| each(&report, pass)[index]);
        assert!((passes.iter().sum::<f64>() - seconds).abs() < 1e-9);
        let parts = report["parts"].as_object().unwrap().keys();
        let parts: f64 = parts.map(|part| each(&report["parts"], part)[index]).sum();
        assert!((parts - seconds).abs() < 1e-9);
    }
    let peak = report["gemm_peak_flops_per_s"].as_f64().unwrap();
    assert!(each(&report, "mfu").iter().all(|mfu| *mfu > 0.0 && *mfu < 1.0));
    assert!(peak > 1e8 && report["peak_bytes"].as_f64() >= report["start_bytes"].as_f64());
}

#[test]
fn tokens_that_rows_share_are_counted_once_in_what_has_to_be_computed() {
    let sizes = ["--group", "4", "--prompt", "8", "--response", "2"];
    let shared = measured("train", &[&sizes[..], &["--shared-prompt"]].concat());
    assert_eq!(shared["sizes"]["padded_tokens"], 40);
    assert_eq!(shared["sizes"]["distinct_tokens"], 16);
    let curve = measured("train", &[&sizes[..], &["--curve"]].concat());
    let points = curve["curve"].as_array().unwrap();
    let distinct: Vec<_> = points.iter().map(|point| point["distinct_tokens"].as_u64()).collect();
    assert_eq!(distinct, [40, 34, 28, 22, 16].map(Some));
    assert!(points.iter().all(|point| point["padded_tokens"] == 40));
    assert_eq!(points[4]["flops"], shared["sizes"]["flops_per_step"]);
}

#[test]
fn a_rollout_is_measured_against_what_products_and_memory_allow() {
    let sizes = [
        "--episodes",
        "3",
        "--turns",
        "2",
        "--prompt",
        "5",
        "--turn-tokens",
        "4",
        "--observation",
        "2",
    ];
    let report = measured("rollout", &sizes);
    let (seconds, rates) = (each(&report, "rollout_s"), each(&report, "sampled_tokens_per_s"));
    assert!(seconds.iter().zip(&rates).all(|(seconds, rate)| (rate * seconds - 24.0).abs() < 1e-6));
    for (bound, share) in
        [("bound_tokens_per_s", "of_bound"), ("memory_bound_tokens_per_s", "of_memory_bound")]
    {
        let bound = report[bound].as_f64().unwrap();
        for (rate, share) in rates.iter().zip(each(&report, share)) {
            assert!((rate / bound - share).abs() < 1e-9 * share);
        }
    }
    let halves = measured("rollout", &[&sizes[..], &["--precision", "bf16"]].concat());
    let bytes = [&report, &halves].map(|report| report["sizes"]["bytes_read"].as_f64());
    assert_eq!(bytes[0], bytes[1].map(|bytes| 2.0 * bytes));
    assert_eq!(halves["sizes"]["model"]["precision"], "bf16");
}

#[test]
fn a_step_is_measured_from_episodes_to_weights() {
    let sizes = [
        "--groups",
        "2",
        "--group",
        "3",
        "--prompt",
        "5",
        "--turn-tokens",
        "4",
        "--observation",
        "2",
    ];
    let report = measured("step", &sizes);
    let phases = each(&report, "rollout_s").into_iter().zip(each(&report, "training_s"));
    for ((rollout, training), step) in phases.zip(each(&report, "step_s")) {
        assert!(rollout > 0.0 && training > 0.0 && (rollout + training - step).abs() < 1e-9);
    }
}

#[test]
fn the_objective_is_measured_without_a_model() {
    let arguments =
        ["bench", "objective", "--sequences", "3", "--tokens", "5", "--repetitions", "1"];
    let table = turnwise(&arguments, "");
    assert!(table.stdout.contains("value and gradient"), "{}{}", table.stdout, table.stderr);
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_reason() {
    for (arguments, reason) in [
        (&["train", "--threads", "0"][..], "0 threads"),
        (&["train", "--length", "1"], "at least one row of two tokens"),
        (&["train", "--heads", "3"], "must be a multiple of n_kv_heads"),
        (&["rollout", "--turns", "0"], "at least 1"),
        (&["step", "--group", "1"], "a group has 2 episodes"),
    ] {
        let ended = turnwise(&[&["bench"], arguments].concat(), "");
        assert_eq!(ended.code, 2, "{arguments:?}");
        assert!(ended.stderr.contains(reason), "{}", ended.stderr);
    }
}

#[test]
fn a_cluster_is_simulated_with_the_costs_of_a_real_worker() {
    let sizes = "--workers 1,8 --groups 2 --group 2 --turns 2 --turn-tokens 5 --prompt 20 --observation 5 --environment 2 \
                 --steps 2";
    let arguments: Vec<&str> = sizes.split_whitespace().collect();
    let simulate = |more: &[&str]| {
        let ended = turnwise(&[&["simulate", "cluster"], &arguments[..], more].concat(), "");
        assert_eq!((ended.code, ended.stderr.contains("WARN")), (0, false), "{}", ended.stderr);
        ended.stdout
    };
    let report: Value = serde_json::from_str(&simulate(&["--json"])).expect("a line of JSON");
    let cost = report["settings"]["hub_turn_s"].as_f64().unwrap();
    assert!(cost > 1e-6 && cost < 1.0, "{cost}");
    let steps: Vec<f64> =
        (0..2).map(|index| report["simulated"][index]["step_s"].as_f64().unwrap()).collect();
    assert!(steps[1] < steps[0], "{steps:?}");
    let shown = simulate(&["--hub", "0.5"]);
    assert!(shown.contains("0.50 ms of a processor"), "{shown}");
    let ended = turnwise(&["simulate", "cluster", "--hub", "0.5", "--workers", "0"], "");
    assert_eq!(ended.code, 2, "{}", ended.stderr);
}
