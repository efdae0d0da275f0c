use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_environment::ToolSpec;

use crate::canvas::Canvas;
use crate::python_json::to_python_json;

/// How the system block describes the tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolPrompt {
    /// The prompt of Qwen and Hermes models: a JSON schema for each tool, and the format of calls.
    #[default]
    Hermes,
    /// One line for each tool, such as `calc(a, op, b)`; a `?` follows optional arguments. For new models, which learn
    /// the rest.
    Signatures,
    /// No description: the task's text has it.
    Omit,
    /// A JSON schema for each tool, on a line of its own, between custom texts, for models trained on other prompts.
    Between {
        /// The text before the first schema, without the line break.
        open: String,
        /// The text after the last schema, from its line break on.
        close: String,
    },
}

/// Verbatim from the Qwen templates, like [`HERMES_CLOSE`].
const HERMES_OPEN: &str = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
    You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
const HERMES_CLOSE: &str = "\n</tools>\n\nFor each function call, return a json object with function name and arguments \
    within <tool_call></tool_call> XML tags:\n<tool_call>\n\
    {\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";

impl ToolPrompt {
    /// Returns the format of descriptions as a word, and the texts before and after them.
    pub(crate) fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Self::Hermes => ("lines", HERMES_OPEN, HERMES_CLOSE),
            Self::Between { open, close } => ("lines", open, close),
            Self::Signatures => ("signatures", "", ""),
            Self::Omit => ("omitted", "", ""),
        }
    }

    /// Returns the description as text.
    pub(crate) fn text(&self, tools: &[ToolSpec]) -> String {
        let lines = |open: &str, close: &str| {
            let each = tools.iter().map(|tool| format!("\n{}", function_json(tool)));
            format!("{open}{}{close}", each.collect::<String>())
        };
        match self {
            Self::Hermes => lines(HERMES_OPEN, HERMES_CLOSE),
            Self::Between { open, close } => lines(open, close),
            Self::Signatures => tools.iter().map(signature).collect::<Vec<_>>().join("\n"),
            Self::Omit => String::new(),
        }
    }

    /// Writes the description. The tools' own texts are content: they may come from an untrusted server.
    pub(crate) fn write(&self, tools: &[ToolSpec], canvas: &mut Canvas<'_>) {
        match self {
            Self::Hermes => write_lines(HERMES_OPEN, tools, HERMES_CLOSE, canvas),
            Self::Between { open, close } => write_lines(open, tools, close, canvas),
            Self::Signatures => {
                for (index, tool) in tools.iter().enumerate() {
                    canvas.template(if index == 0 { "" } else { "\n" });
                    canvas.content(&signature(tool));
                }
            }
            Self::Omit => {}
        }
    }
}

fn write_lines(open: &str, tools: &[ToolSpec], close: &str, canvas: &mut Canvas<'_>) {
    canvas.template(open);
    for tool in tools {
        canvas.template("\n");
        canvas.content(&function_json(tool));
    }
    canvas.template(close);
}

/// Returns `{"type": "function", "function": {"name": …, "description": …, "parameters": …}}` with the keys in this
/// order, which a map with sorted keys would lose.
fn function_json(tool: &ToolSpec) -> String {
    format!("{{\"type\": \"function\", \"function\": {}}}", to_python_json(tool))
}

/// Returns a signature: required arguments first, in the order of the schema.
fn signature(tool: &ToolSpec) -> String {
    let required: Vec<&str> = tool.parameters["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = tool.parameters["properties"].as_object();
    let optional = properties
        .into_iter()
        .flat_map(|properties| properties.keys())
        .filter(|name| !required.contains(&name.as_str()))
        .map(|name| format!("{name}?"));
    let arguments: Vec<String> =
        required.iter().map(|name| (*name).to_owned()).chain(optional).collect();
    format!("{}({})", tool.name, arguments.join(", ")).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnwise_environment::ToolSpec;

    use super::{function_json, signature};

    fn calc() -> ToolSpec {
        ToolSpec {
            name: "calc".to_owned(),
            description: "Calculates.".to_owned(),
            parameters: json!({
                "properties": {"round": {}, "a": {}, "op": {}, "b": {}},
                "required": ["a", "op", "b"],
            }),
        }
    }

    #[test]
    fn a_signature_is_one_short_line() {
        assert_eq!(signature(&calc()), "calc(a, op, b, round?)");
        assert_eq!(signature(&ToolSpec { parameters: json!(null), ..calc() }), "calc()");
    }

    #[test]
    fn the_keys_of_a_function_keep_the_templates_order() {
        let tool = ToolSpec { parameters: json!({}), ..calc() };
        assert_eq!(
            function_json(&tool),
            r#"{"type": "function", "function": {"name": "calc", "description": "Calculates.", "parameters": {}}}"#
        );
    }
}
