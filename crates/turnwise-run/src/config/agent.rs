//! Checks of the agent's settings, and of what they need from others.

use turnwise_serve::VerifiersOptions;

use super::schema::{Config, ExampleMessage, ExampleRole};
use super::validate::{Impossible, refuse_if};
use crate::form::TemplateName;

/// Refuses an agent that cannot act, or whose settings would not be used.
pub(super) fn check_agent(config: &Config) -> Result<(), Impossible> {
    check_examples(&config.agent.examples)?;
    check_turn(config)?;
    check_program(config)?;
    check_verifiers(config)?;
    check_template(config)
}

/// Checks that users and assistants take turns: many templates reject anything else, in every episode.
fn check_examples(examples: &[ExampleMessage]) -> Result<(), Impossible> {
    let role =
        |n: usize| if n.is_multiple_of(2) { ExampleRole::User } else { ExampleRole::Assistant };
    let wrong = examples.iter().enumerate().find(|(n, example)| example.role != role(*n));
    let word = |role: ExampleRole| if role == ExampleRole::User { "user" } else { "assistant" };
    let help = "write pairs of a message of the user and the assistant's answer; the task follows the last answer";
    if let Some((n, example)) = wrong {
        let (is, expected) = (word(example.role), word(role(n)));
        let what = || format!("has role = \"{is}\" in message {}, where {expected} follows", n + 1);
        return refuse_if(true, "agent.examples", what, help);
    }
    refuse_if(
        examples.len() % 2 == 1,
        "agent.examples",
        || "ends with a message of the user".to_owned(),
        help,
    )
}

/// Checks that a turn can have an answer.
fn check_turn(config: &Config) -> Result<(), Impossible> {
    let agent = &config.agent;
    refuse_if(
        agent.stop.iter().any(String::is_empty),
        "agent.stop",
        || "has an empty text, which would end every turn before its first token".to_owned(),
        "leave it out",
    )?;
    let inside = agent.stop.iter().find(|stop| agent.prefill.contains(stop.as_str()));
    refuse_if(
        inside.is_some(),
        "agent.stop",
        || {
            let stop = inside.map_or("", String::as_str);
            format!("has {stop:?}, which is in agent.prefill, so that every answer would be empty")
        },
        "use a text that the prefill does not have",
    )?;
    let (thinking, turn) = (agent.thinking_tokens.unwrap_or(0), config.limits.max_turn_tokens);
    refuse_if(
        thinking >= turn,
        "agent.thinking_tokens",
        || format!("= {thinking} leaves no token for an answer: limits.max_turn_tokens = {turn}"),
        "use a larger limits.max_turn_tokens, or less thinking",
    )?;
    refuse_if(
        agent.thinking_tokens.is_some() && config.rollout.constraint.is_some(),
        "agent.thinking_tokens",
        || "forces tokens that rollout.constraint may not allow".to_owned(),
        "leave one of them out",
    )
}

/// Checks that there is a program where one has to be, and nothing that would do its work.
fn check_program(config: &Config) -> Result<(), Impossible> {
    let command = config.agent.command.as_deref();
    refuse_if(
        command.is_some_and(|command| command.trim().is_empty()),
        "agent.command",
        || "is empty".to_owned(),
        "write the command line that starts your agent, or leave it out",
    )?;
    refuse_if(
        command.is_none() && config.environment.name == "program",
        "environment.name",
        || "= \"program\" has the tasks of an agent program, and there is none".to_owned(),
        "set agent.command to the command line that starts your agent",
    )?;
    refuse_if(
        command.is_some() && config.rollout.compaction.is_some(),
        "rollout.compaction",
        || "is for the agent of turnwise, and agent.command starts another".to_owned(),
        "leave it out: the program decides what it sends of its history",
    )
}

/// Refuses what a server of verifiers does itself, because it plays whole episodes.
fn check_verifiers(config: &Config) -> Result<(), Impossible> {
    if config.environment.name != VerifiersOptions::ENVIRONMENT {
        return Ok(());
    }
    let agent = &config.agent;
    let refused = [
        ("agent.command", agent.command.is_some(), "its agent is the server's harness"),
        ("agent.system_prompt", agent.system_prompt.is_some(), "the server writes the prompts"),
        ("agent.examples", !agent.examples.is_empty(), "the server writes the prompts"),
        (
            "rollout.compaction",
            config.rollout.compaction.is_some(),
            "the server decides what it sends of its history",
        ),
        (
            "rollout.workers",
            config.rollout.workers.is_some(),
            "the server asks for the model beside the trainer",
        ),
    ];
    for (key, is_set, why) in refused {
        refuse_if(
            is_set,
            key,
            || format!("is not used by the environment `{}`: {why}", config.environment.name),
            "leave it out",
        )?;
    }
    Ok(())
}

/// Checks what is written for the model's own template.
fn check_template(config: &Config) -> Result<(), Impossible> {
    let model = &config.model;
    let is_other = model.template.is_some_and(|template| template != TemplateName::Hf);
    refuse_if(
        model.template_file.is_some() && is_other,
        "model.template_file",
        || "is used by the template `hf` alone".to_owned(),
        "leave it out, or set model.template = \"hf\"",
    )?;
    let own = ["messages", "tools", "add_generation_prompt"];
    let taken = own.into_iter().find(|key| model.template_arguments.contains_key(*key));
    refuse_if(
        taken.is_some(),
        "model.template_arguments",
        || format!("has `{}`, which every episode sets", taken.unwrap_or_default()),
        "leave it out; a conversation begins with agent.system_prompt and agent.examples",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(settings: &str) -> Option<String> {
        let config: Config = toml_edit::de::from_str(settings).expect("settings");
        check_agent(&config).err().map(|impossible| impossible.key)
    }

    #[test]
    fn an_agent_that_cannot_act_is_refused() {
        let (user, assistant) =
            (r#"{role="user",content="5"}"#, r#"{role="assistant",content="5"}"#);
        for (settings, key) in [
            (format!("agent.examples = [{user}, {assistant}]"), None),
            (format!("agent.examples = [{user}, {user}]"), Some("agent.examples")),
            (format!("agent.examples = [{assistant}, {user}]"), Some("agent.examples")),
            (format!("agent.examples = [{user}, {assistant}, {user}]"), Some("agent.examples")),
            ("agent.stop = [\"\"]".to_owned(), Some("agent.stop")),
            ("agent.stop = [\"x\"]\nagent.prefill = \"ax\"".to_owned(), Some("agent.stop")),
            ("agent.stop = [\"x\"]\nagent.prefill = \"a\"".to_owned(), None),
            (
                "agent.thinking_tokens = 8\nlimits.max_turn_tokens = 8".to_owned(),
                Some("agent.thinking_tokens"),
            ),
            ("agent.thinking_tokens = 7\nlimits.max_turn_tokens = 8".to_owned(), None),
            (
                "agent.thinking_tokens = 7\nrollout.constraint = {regex = \"a\"}".to_owned(),
                Some("agent.thinking_tokens"),
            ),
            ("agent.command = \" \"".to_owned(), Some("agent.command")),
            ("environment.name = \"program\"".to_owned(), Some("environment.name")),
            ("environment.name = \"program\"\nagent.command = \"a\"".to_owned(), None),
            (
                "agent.command = \"a\"\nrollout.compaction = {at_tokens = 64, prompt = \"a\"}"
                    .to_owned(),
                Some("rollout.compaction"),
            ),
            (
                "model.template = \"chatml\"\nmodel.template_file = \"a\"".to_owned(),
                Some("model.template_file"),
            ),
            (
                "model.template_arguments = {messages = 1}".to_owned(),
                Some("model.template_arguments"),
            ),
        ] {
            assert_eq!(refused(&settings).as_deref(), key, "{settings}");
        }
    }

    #[test]
    fn what_a_server_of_verifiers_does_itself_is_refused() {
        for (settings, key) in [
            ("agent.prefill = \"a\"", None),
            ("agent.command = \"a\"", Some("agent.command")),
            ("agent.system_prompt = \"a\"", Some("agent.system_prompt")),
            (
                "agent.examples = [{role=\"user\",content=\"5\"}, {role=\"assistant\",content=\"5\"}]",
                Some("agent.examples"),
            ),
            ("rollout.compaction = {at_tokens = 64, prompt = \"a\"}", Some("rollout.compaction")),
            ("rollout.workers = {}", Some("rollout.workers")),
        ] {
            let settings = format!("environment.name = \"verifiers\"\n{settings}");
            assert_eq!(refused(&settings).as_deref(), key, "{settings}");
        }
    }
}
