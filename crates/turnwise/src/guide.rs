//! The guide: from an environment of your own to a trained model.
//!
//! | page | for |
//! |---|---|
//! | [Write an environment](environment) | the first hour: an environment, its tools and rewards, a small model trained on it |
//! | [Train a real model](real_model) | a model from Hugging Face: settings, memory, adapters, checkpoints |
//! | [Train an agent program](agent_program) | an agent in any language, on OpenAI's or Anthropic's client |
//! | [Python](python) | environments in Python, the files of runs, engine, trainer and objectives |
//! | [Environments of others, and for others](servers) | OpenEnv, ORS, verifiers: as servers and as environments |
//! | [An engine on another machine](remote_engine) | vLLM or SGLang as the engine |
//! | [Workers on other machines](workers) | environments that need more than the trainer's machine |
//! | [A trainer on another machine](remote_trainer) | a Tinker server as the learner |
//! | [Credit and objectives](credit) | which of them to choose |
//! | [Partial and asynchronous rollouts](rollouts) | episodes of different length |
//! | [Your own objective](own_objective) | a loss of your own |
//! | [Your own engine or trainer](own_engine) | inference or training of your own |
//!
//! The same pages are a book for mdBook, in `crates/turnwise/docs/guide`.

/// A page. Links between pages are defined at its end, as mdBook needs them; the definitions here come first, and so they are the ones
/// that count in this documentation.
macro_rules! page {
    ($name:ident, $summary:literal) => {
        #[doc = $summary]
        ///
        /// [environment]: crate::guide::environment
        /// [real_model]: crate::guide::real_model
        /// [agent_program]: crate::guide::agent_program
        /// [python]: crate::guide::python
        /// [servers]: crate::guide::servers
        /// [remote_engine]: crate::guide::remote_engine
        /// [workers]: crate::guide::workers
        /// [remote_trainer]: crate::guide::remote_trainer
        /// [credit]: crate::guide::credit
        /// [rollouts]: crate::guide::rollouts
        /// [own_objective]: crate::guide::own_objective
        /// [own_engine]: crate::guide::own_engine
        #[doc = ""]
        #[doc = include_str!(concat!("../docs/guide/src/", stringify!($name), ".md"))]
        pub mod $name {}
    };
}

page!(
    environment,
    "From thirty lines to tools, rewards, snapshots and a model that was trained on them."
);
page!(real_model, "A model from Hugging Face: settings, memory, adapters, checkpoints.");
page!(
    agent_program,
    "An agent in any language, on OpenAI's or Anthropic's client: its tasks, its rewards, and what is trained."
);
page!(python, "Environments in Python, the files of runs, engine, trainer and objectives.");
page!(
    servers,
    "Environments that are somebody else's server, and environments served to other trainers."
);
page!(
    remote_engine,
    "Rollouts on vLLM or SGLang: how the server is started, what is checked, and what happens when a replica fails."
);
page!(
    workers,
    "Rollout workers: how they join, what a killed one costs, and recipes for Ray, Slurm and Kubernetes."
);
page!(
    remote_trainer,
    "Training on a Tinker server: what is exact, what it cannot do, and what happens when it fails."
);
page!(credit, "How rewards become advantages, and how far a step may go.");
page!(rollouts, "Episodes that are cut and go on, and rollouts beside training.");
page!(own_objective, "A loss of your own, and a program that trains with it.");
page!(own_engine, "Inference or training of your own.");
