use turnwise_simulation::{OrchestrationError, OrchestrationSettings, measure_orchestration};

// Each figure is measured, once in each repetition.
#[test]
fn every_figure_of_the_orchestration_is_measured_once_per_repetition() {
    let settings = OrchestrationSettings { episodes: 200, turns: 4, repetitions: 3 };
    let report = measure_orchestration(settings).expect("Linux counts it");
    assert_eq!(report.cpu_us_per_turn.len(), 3);
    assert_eq!(report.suspended_cpu_us_per_turn.len(), 3);
    assert!(report.cpu_us_per_turn.iter().all(|cost| *cost > 0.0));
    assert!(report.serialised_bytes_per_suspended > 500.0);
}

// Invalid settings are a typed error.
#[test]
fn nothing_is_measured_with_settings_that_mean_nothing() {
    let settings = OrchestrationSettings { episodes: 0, ..OrchestrationSettings::default() };
    let error = measure_orchestration(settings).expect_err("no episode, no figure");
    assert!(matches!(error, OrchestrationError::Settings));
}
