//! Every sampled turn is parsed under any schema, and content never becomes a control token.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use turnwise_chat::{
    CallForm, MAX_CALL_BYTES, TemplateRenderer, TemplateSettings, Tokenizer, ToolPrompt, Trust,
};
use turnwise_environment::{Action, CallAttempt, CallError, Message, ToolSpec};
use turnwise_rollout::Renderer;
use turnwise_trajectory::{TokenId, TokenKind};

use crate::support::{chatml, hostile_text, ids_of, ids_of_kind, llama, llama_tokenizer, trained};

const QWEN3: &str = include_str!("jinja/qwen3.jinja");
const LLAMA31: &str = include_str!("jinja/llama31.jinja");

const NAMES: [&str; 4] = ["calc", "name", "", "</tool_call>"];
const TYPES: [&str; 9] =
    ["string", "number", "integer", "boolean", "object", "array", "null", "tensor", ""];

fn llama31() -> TemplateRenderer {
    let mut settings = TemplateSettings {
        stop: vec!["<|eot_id|>".to_owned()],
        calls: CallForm::Llama3,
        ..TemplateSettings::default()
    };
    settings.arguments.insert("bos_token".to_owned(), "<|begin_of_text|>".into());
    TemplateRenderer::new(llama_tokenizer(), LLAMA31, &Trust::Any, settings).expect("a template")
}

fn qwen3() -> TemplateRenderer {
    TemplateRenderer::new(trained(), QWEN3, &Trust::Any, TemplateSettings::default())
        .expect("a template")
}

/// Returns every renderer, and the tokenizer of its model.
fn renderers() -> Vec<(Box<dyn Renderer>, std::sync::Arc<Tokenizer>)> {
    vec![
        (Box::new(chatml(trained(), ToolPrompt::Hermes)), trained()),
        (Box::new(qwen3()), trained()),
        (Box::new(llama(true)), llama_tokenizer()),
        (Box::new(llama31()), llama_tokenizer()),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(&TYPES[..]).prop_map(Value::from),
        hostile_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any_name(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![prop::sample::select(&NAMES[..]).prop_map(str::to_owned), hostile_text()]
}

/// Valid schemas, and arbitrary values instead of one or of its parts.
fn any_schema() -> impl Strategy<Value = Value> {
    let part = || prop_oneof![any_json(), Just(json!({"type": ["integer", "null"]}))];
    let properties = prop::collection::vec((any_name(), part()), 0..4)
        .prop_map(|entries| Value::Object(entries.into_iter().collect()));
    let required = prop::collection::vec(any_name(), 0..3).prop_map(Value::from);
    let shaped = (properties, required, any_json()).prop_map(|(properties, required, more)| {
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": more})
    });
    prop_oneof![any_json(), shaped]
}

fn any_tools() -> impl Strategy<Value = Vec<ToolSpec>> {
    let tool = (any_name(), any_schema()).prop_map(|(name, parameters)| ToolSpec {
        name,
        description: String::new(),
        parameters,
    });
    prop::collection::vec(tool, 0..3)
}

/// Text that resembles calls of either format.
fn any_turn() -> impl Strategy<Value = String> {
    let call = (any_name(), any_json(), any::<bool>()).prop_map(|(name, arguments, is_hermes)| {
        if is_hermes {
            format!("<tool_call>{}</tool_call>", json!({"name": name, "arguments": arguments}))
        } else {
            json!({"name": name, "parameters": arguments}).to_string()
        }
    });
    let piece = prop_oneof![
        4 => call,
        1 => Just("<|python_tag|>".to_owned()),
        1 => prop::sample::select(&["; ", "{\"name\"", "}", "[[[[", "<tool_call>", "\"", "<think>"][..])
            .prop_map(str::to_owned),
        1 => hostile_text(),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

/// Checks what holds for every parsed turn: calls are numbered, a mistake repeats no more than was read, and every
/// remaining call has an existing tool and all required arguments.
fn check(action: &Action, tools: &[ToolSpec]) -> Result<(), TestCaseError> {
    for (index, attempt) in action.calls.iter().enumerate() {
        let id = format!("call_{index}");
        match attempt {
            CallAttempt::Malformed(call) => {
                prop_assert_eq!(&call.id, &id);
                prop_assert!(call.raw.len() <= MAX_CALL_BYTES);
                prop_assert!(!call.message.is_empty());
                prop_assert!(!tools.is_empty() || call.error != CallError::NotFound);
            }
            CallAttempt::Call(call) => {
                prop_assert_eq!(&call.id, &id);
                let tool = tools.iter().find(|tool| tool.name == call.name);
                prop_assert!(tool.is_some() || tools.is_empty());
                let required = tool.and_then(|tool| tool.parameters["required"].as_array());
                let required = required.into_iter().flatten().filter_map(Value::as_str);
                for name in required {
                    prop_assert!(call.arguments.get(name).is_some(), "{name:?} is missing");
                }
            }
        }
    }
    Ok(())
}

proptest! {
    // Rollouts 13.18
    #[test]
    fn any_ids_are_read_under_any_schema(
        turn in any_turn(),
        more in prop::collection::vec(prop_oneof![0..330_u32, 305..320_u32, any::<u32>()], 0..30),
        at in any::<prop::sample::Index>(),
        tools in any_tools(),
    ) {
        for (renderer, tokenizer) in renderers() {
            let mut ids: Vec<TokenId> = tokenizer.encode_with_markers(&turn);
            check(&renderer.parse(&ids, &tools), &tools)?;
            let at = at.index(ids.len() + 1);
            ids.splice(at..at, more.iter().copied());
            let action = renderer.parse(&ids, &tools);
            check(&action, &tools)?;
            prop_assert_eq!(renderer.parse(&ids, &tools), action);
            // A schema decides what a call becomes, but not whether there is one.
            let free = renderer.parse(&ids, &[]);
            prop_assert_eq!(free.calls.len(), renderer.parse(&ids, &tools).calls.len());
        }
    }

    // Rollouts 13.17
    #[test]
    fn hostile_text_makes_no_control_token_in_the_llama_form(
        text in hostile_text(),
        marker in prop::sample::select(&["<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>", "<|python_tag|>"][..]),
        role in 0..3_u8,
    ) {
        let text = format!("x{marker}x{text}x");
        let tokenizer = llama_tokenizer();
        let tool = |text: &str| ToolSpec {
            name: text.to_owned(),
            description: format!("a{text}"),
            parameters: json!({"properties": {text: {}}, "required": [text]}),
        };
        for renderer in [&llama(true) as &dyn Renderer, &llama(false), &llama31()] {
            let render = |text: &str| {
                let message = match role {
                    0 => Message::user(text),
                    1 => Message::tool("call_0", text),
                    _ => Message::system(text),
                };
                let messages = vec![Message::user("Hi"), message];
                renderer.open(&messages.into(), &[tool(text)]).expect("it renders")
            };
            let controls = |text: &str| -> Vec<TokenId> {
                ids_of(&render(text)).into_iter().filter(|id| tokenizer.is_control(*id)).collect()
            };
            prop_assert_eq!(controls(&text), controls("tame"));
            let context = ids_of_kind(&render(&text).messages[1], TokenKind::Context);
            prop_assert!(!context.iter().any(|id| tokenizer.is_control(*id)));
            let read = renderer.text(&context);
            prop_assert!(read.contains(marker), "{:?}", read);
        }
    }
}

/// Turns and schemas on which a careless parser needs quadratic time or deep recursion.
// Rollouts 13.18
#[test]
fn adversarial_turns_and_schemas_take_little_time() {
    let repeated = |piece: &str, n_bytes: usize| piece.repeat(n_bytes / piece.len());
    let object = |open: &str, inside: &str| format!("{{\"name\": \"f\", \"{open}\": {inside}");
    let turns = [
        repeated("{\"name\": \"f\"};", 1 << 18),
        repeated("<tool_call>{\"name\": \"f\"}</tool_call>", 1 << 18),
        repeated("{\"name\": \"f\", \"parameters\": ", 1 << 18),
        repeated("{ \"name\"", 1 << 18),
        repeated("<|python_tag|>", 1 << 18),
        repeated("{", 1 << 18),
        object("parameters", &repeated("[", 1 << 18)),
        object("parameters", &repeated("{\"a\":", 1 << 18)),
        format!("{{{}\"name\"", repeated(" ", 1 << 18)),
    ];
    let mut deep = json!({});
    for _ in 0..100 {
        deep = json!({"properties": {"a": deep}, "type": "object"});
    }
    let names: Vec<String> = (0..2000).map(|n| format!("a{n}")).collect();
    let wide: Map<String, Value> =
        names.iter().map(|name| (name.clone(), json!({"type": "integer"}))).collect();
    let schemas = [deep, json!({"properties": wide, "required": names})];
    for (renderer, tokenizer) in renderers() {
        for turn in &turns {
            let ids = tokenizer.encode_with_markers(turn);
            for schema in &schemas {
                let tool = ToolSpec {
                    name: "f".to_owned(),
                    description: String::new(),
                    parameters: schema.clone(),
                };
                let start = Instant::now();
                let action = renderer.parse(&ids, &[tool]);
                let elapsed = start.elapsed();
                assert!(elapsed < Duration::from_secs(2), "{elapsed:?}: {turn:.40}");
                assert!(action.calls.len() <= turn.len());
            }
        }
    }
}
