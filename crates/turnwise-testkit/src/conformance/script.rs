use turnwise_environment::{Action, Demonstrator, Environment, Observation, Step};

/// A player of fixed texts, one in each turn, that repeats the last one.
///
/// ```
/// use turnwise_environment::Demonstrator;
/// use turnwise_testkit::conformance::Script;
///
/// let mut script = Script::new(&["2", "6"]);
/// assert_eq!(script.act(&"Choose.".into()).text, "2");
/// assert_eq!(script.act(&"Too cold.".into()).text, "6");
/// assert_eq!(script.act(&"Too warm.".into()).text, "6");
/// ```
#[derive(Clone, Debug)]
pub struct Script {
    /// The remaining texts, last first.
    rest: Vec<String>,
}

impl Script {
    /// Creates a player of these texts; without any, it answers with empty texts.
    #[must_use]
    pub fn new(texts: &[&str]) -> Self {
        Self { rest: texts.iter().rev().map(|text| (*text).to_owned()).collect() }
    }
}

impl Demonstrator for Script {
    fn act(&mut self, _observation: &Observation) -> Action {
        if self.rest.len() > 1 {
            return Action::text(self.rest.pop().unwrap_or_default());
        }
        Action::text(self.rest.last().cloned().unwrap_or_default())
    }
}

/// Plays a script once, to find a text after the end.
pub(super) async fn plays<E: Environment>(make: &(impl Fn() -> E + Sync), texts: &[&str]) {
    let mut environment = make();
    environment.reset(0).await.unwrap_or_else(|error| panic!("reset failed: {error}"));
    for (n_said, text) in texts.iter().enumerate() {
        let step = environment
            .step(Action::text(*text))
            .await
            .unwrap_or_else(|error| panic!("{error}, after {text:?}"));
        let rest = &texts[n_said + 1..];
        assert!(
            matches!(step, Step::Next { .. }) || rest.is_empty(),
            "the episode is over after {text:?}, but the script goes on with {rest:?}",
        );
    }
}
