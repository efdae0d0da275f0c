use serde::{Deserialize, Serialize};
use turnwise_environment::{Message, Observation, Role};

/// The messages that precede every conversation of an agent: a system prompt and examples.
///
/// ```
/// use turnwise_environment::{Message, Observation};
/// use turnwise_rollout::Preface;
///
/// let preface = Preface { system: "Answer with a number.".to_owned(), ..Preface::default() };
/// let told = preface.before(&Observation::from("What is 2 + 2?"));
/// assert_eq!(told.messages[0], Message::system("Answer with a number."));
/// assert_eq!(told.messages[1], Message::user("What is 2 + 2?"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preface {
    /// The system prompt, before the environment's own; empty for none.
    pub system: String,
    /// Messages of user and assistant in turn, after the system prompt.
    pub examples: Vec<Message>,
    /// Whether the system prompt stands in the first message of the user, for a template without system messages.
    pub is_in_user_message: bool,
}

impl Preface {
    /// Returns the first observation of an episode with the preface before it.
    #[must_use]
    pub fn before(&self, observation: &Observation) -> Observation {
        let mut rest = observation.messages.clone();
        let mut system = self.system.clone();
        if !system.is_empty() && rest.first().is_some_and(|first| first.role == Role::System) {
            // Many templates allow one system message alone.
            system = format!("{system}\n\n{}", rest.remove(0).content);
        }
        let mut messages: Vec<Message> = self.examples.clone();
        messages.extend(rest);
        let user = messages.iter_mut().find(|message| message.role == Role::User);
        match user.filter(|_| self.is_in_user_message) {
            _ if system.is_empty() => {}
            Some(user) => user.content = format!("{system}\n\n{}", user.content),
            None => messages.insert(0, Message::system(system)),
        }
        Observation { messages, ..observation.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(observation: &Observation) -> Vec<(Role, &str)> {
        observation.messages.iter().map(|message| (message.role, &*message.content)).collect()
    }

    #[test]
    fn there_is_one_system_message_at_most() {
        let preface = Preface {
            system: "a".to_owned(),
            examples: vec![Message::user("q"), Message::assistant("p")],
            is_in_user_message: false,
        };
        let own = Observation::new(vec![Message::system("b"), Message::user("go")]);
        let expected = [
            (Role::System, "a\n\nb"),
            (Role::User, "q"),
            (Role::Assistant, "p"),
            (Role::User, "go"),
        ];
        assert_eq!(texts(&preface.before(&own)), expected);
        let inside = Preface { is_in_user_message: true, ..preface };
        let expected = [(Role::User, "a\n\nb\n\nq"), (Role::Assistant, "p"), (Role::User, "go")];
        assert_eq!(texts(&inside.before(&own)), expected);
        assert_eq!(Preface::default().before(&own), own);
    }
}
