//! Every format of tool calls: written calls are parsed unchanged, and any other text is parsed without failure.

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use turnwise_chat::{
    MAX_CALL_BYTES, TemplateRenderer, TemplateSettings, Trust, parse_llama_turn, parse_turn,
};
use turnwise_environment::{Action, CallAttempt, ToolCall, ToolSpec};
use turnwise_rollout::Renderer;

use crate::support::{hostile_text, llama, trained};

/// A format: its tag, and how a template writes the calls `m.tool_calls` in it.
struct Form {
    tag: &'static str,
    calls: &'static str,
}

const LIST: &str = "{%- for c in m.tool_calls -%}{{- {'name': c.function.name, 'arguments': c.function.arguments} | tojson -}}\
    {{- '' if loop.last else ', ' -}}{%- endfor -%}";
const PARAMETERS: &str = "{%- for k, v in c.function.arguments.items() -%}{{- '<parameter=' + k + '>\\n' -}}\
    {{- v if v is string else v | tojson -}}{{- '\\n</parameter>\\n' -}}{%- endfor -%}";
const NAMED_PARAMETERS: &str = "{%- for k, v in c.function.arguments.items() -%}{{- '<DparameterXname=\"' + k + '\">' -}}\
    {{- v if v is string else v | tojson -}}{{- '</Dparameter>' -}}{%- endfor -%}";
const INVOKES: &str = "{%- for c in m.tool_calls -%}{{- '<DinvokeXname=\"' + c.function.name + '\">\n' -}}NAMED{{- '</Dinvoke>\n' -}}\
    {%- endfor -%}";

const FORMS: [Form; 19] = [
    Form {
        tag: "<tool_call>\n{",
        calls: "{%- for c in m.tool_calls -%}{{- '<tool_call>\n' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\n</tool_call>' -}}{%- endfor -%}",
    },
    Form {
        tag: "<tool_call>\n<function=",
        calls: "{%- for c in m.tool_calls -%}{{- '<tool_call>\n<function=' + c.function.name + '>\n' -}}PARAMETERS{{- '</function>\n</tool_call>' -}}{%- endfor -%}",
    },
    Form {
        tag: "<seed:tool_call>",
        calls: "{%- for c in m.tool_calls -%}{{- '<seed:tool_call><function=' + c.function.name + '>' -}}PARAMETERS{{- '</function></seed:tool_call>' -}}{%- endfor -%}",
    },
    Form {
        tag: "<function=",
        calls: "{%- for c in m.tool_calls -%}{{- '<function=' + c.function.name + '>' + c.function.arguments | tojson + '</function>' -}}{%- endfor -%}",
    },
    Form {
        tag: "<arg_key>",
        calls: "{%- for c in m.tool_calls -%}{{- '<tool_call>' + c.function.name + '\n' -}}{%- for k, v in c.function.arguments.items() -%}{{- '<arg_key>' + k + '</arg_key>\n<arg_value>' -}}{{- v if v is string else v | tojson -}}{{- '</arg_value>\n' -}}{%- endfor -%}{{- '</tool_call>' -}}{%- endfor -%}",
    },
    Form {
        tag: "<tool_calls>\n<tool_call>",
        calls: "{{- '<tool_calls>\n' -}}{%- for c in m.tool_calls -%}{{- '<tool_call>' + c.function.name + '\n```json\n' + c.function.arguments | tojson + '\n```</tool_call>\n' -}}{%- endfor -%}{{- '</tool_calls>' -}}",
    },
    Form {
        tag: "<｜tool▁call▁begin｜>function",
        calls: "{{- '<｜tool▁calls▁begin｜>' -}}{%- for c in m.tool_calls -%}{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + c.function.name + '\n```json\n' + c.function.arguments | tojson + '\n```<｜tool▁call▁end｜>\n' -}}{%- endfor -%}{{- '<｜tool▁calls▁end｜>' -}}",
    },
    Form {
        tag: "<｜tool▁call▁begin｜>",
        calls: "{{- '<｜tool▁calls▁begin｜>' -}}{%- for c in m.tool_calls -%}{{- '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments | tojson + '<｜tool▁call▁end｜>' -}}{%- endfor -%}{{- '<｜tool▁calls▁end｜>' -}}",
    },
    Form {
        tag: "<|tool_calls_section_begin|>",
        calls: "{{- '<|tool_calls_section_begin|>' -}}{%- for c in m.tool_calls -%}{{- '<|tool_call_begin|>functions.' + c.function.name + ':0<|tool_call_argument_begin|>' + c.function.arguments | tojson + '<|tool_call_end|>' -}}{%- endfor -%}{{- '<|tool_calls_section_end|>' -}}",
    },
    Form {
        tag: "<minimax:tool_call>",
        calls: "{{- '<minimax:tool_call>\n' -}}INVOKES{{- '</minimax:tool_call>' -}}",
    },
    Form {
        tag: "<｜DSML｜function_calls>",
        calls: "{{- '<｜DSML｜function_calls>\n' -}}DSML{{- '</｜DSML｜function_calls>' -}}",
    },
    Form {
        tag: "<｜DSML｜tool_calls>",
        calls: "{{- '<｜DSML｜tool_calls>\n' -}}DSML{{- '</｜DSML｜tool_calls>' -}}",
    },
    Form { tag: "<tool_calls>[", calls: "{{- '<tool_calls>[' -}}LIST{{- ']</tool_calls>' -}}" },
    Form { tag: "<TOOLCALL>", calls: "{{- '<TOOLCALL>[' -}}LIST{{- ']</TOOLCALL>' -}}" },
    Form {
        tag: "<|START_ACTION|>",
        calls: "{{- '<|START_ACTION|>[\n' -}}{%- for c in m.tool_calls -%}{{- {'tool_call_id': '0', 'tool_name': c.function.name, 'parameters': c.function.arguments} | tojson -}}{{- '' if loop.last else ',\n' -}}{%- endfor -%}{{- '\n]<|END_ACTION|>' -}}",
    },
    Form { tag: "<|tool_call|>", calls: "{{- '<|tool_call|>[' -}}LIST{{- ']<|/tool_call|>' -}}" },
    Form { tag: "[TOOL_CALLS][", calls: "{{- '[TOOL_CALLS][' -}}LIST{{- ']' -}}" },
    Form {
        tag: "[ARGS]",
        calls: "{%- for c in m.tool_calls -%}{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson -}}{%- endfor -%}",
    },
    Form {
        tag: "<|channel|>",
        calls: "{%- for c in m.tool_calls -%}{{- '<|channel|>commentary to=functions.' + c.function.name + ' <|constrain|>json<|message|>' + c.function.arguments | tojson + '<|call|>' -}}{%- endfor -%}",
    },
];

/// Texts that may mislead a parser of any format.
const MARKERS: [&str; 44] = [
    "<tool_call>",
    "</tool_call>",
    "<seed:tool_call>",
    "</seed:tool_call>",
    "<function=",
    "<function=f>",
    "</function>",
    "<parameter=",
    "<parameter=a>",
    "</parameter>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "```json\n",
    "```",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    "<invoke name=\"",
    "</invoke>",
    "<parameter name=\"",
    "<｜DSML｜tool_calls>",
    "｜DSML｜",
    "<tool_calls>",
    "<TOOLCALL>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<|tool_call|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|channel|>",
    "<|message|>",
    "<think>",
    "</think>",
];

/// The renderers of a template for each format.
static RENDERERS: LazyLock<Vec<TemplateRenderer>> = LazyLock::new(|| {
    let invokes = INVOKES.replace("NAMED", NAMED_PARAMETERS);
    let renderer = |form: &Form| {
        let calls = form
            .calls
            .replace("PARAMETERS", PARAMETERS)
            .replace("LIST", LIST)
            .replace("INVOKES", &invokes.replace("<D", "<").replace("</D", "</"))
            .replace(
                "DSML{",
                &format!("{}{{", invokes.replace("<D", "<｜DSML｜").replace("</D", "</｜DSML｜")),
            )
            .replace('X', " ");
        let template = format!(
            "{{%- for m in messages -%}}{{{{- '<|im_start|>' + m.role + '\\n' + m.content -}}}}{{%- if m.tool_calls -%}}{calls}{{%- endif -%}}\
             {{{{- '<|im_end|>\\n' -}}}}{{%- endfor -%}}{{%- if add_generation_prompt -%}}{{{{- '<|im_start|>assistant\\n' -}}}}{{%- endif -%}}"
        );
        TemplateRenderer::new(trained(), &template, &Trust::Any, TemplateSettings::default())
            .expect("a template")
    };
    FORMS.iter().map(renderer).collect()
});

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = || {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            Just(json!(i64::MIN)),
            Just(json!(u64::MAX)),
            (-1e300..1e300).prop_map(Value::from),
            any_string().prop_map(Value::from),
        ]
    };
    let nested = prop_oneof![
        prop::collection::vec(leaf(), 0..3).prop_map(Value::from),
        prop::collection::vec((any_string(), leaf()), 0..3)
            .prop_map(|entries| Value::Object(entries.into_iter().collect())),
    ];
    prop_oneof![4 => leaf(), 1 => nested]
}

fn any_string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(&MARKERS[..]).prop_map(str::to_owned),
        prop::sample::select(
            &["\n", "\"", "\\", "'", "7", "null", "é😀", "\u{2028}", "\t", " "][..]
        )
        .prop_map(str::to_owned),
        "[ -~]{0,6}",
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

fn any_calls() -> impl Strategy<Value = Vec<ToolCall>> {
    let arguments = prop::collection::btree_map("[a-z_]{1,6}", any_value(), 0..4);
    let call = ("[a-z][a-z_]{0,6}", arguments).prop_map(|(name, arguments)| {
        let arguments = Value::Object(arguments.into_iter().collect::<Map<_, _>>());
        ToolCall { id: String::new(), name, arguments }
    });
    prop::collection::vec(call, 1..4).prop_map(numbered)
}

/// Returns the calls with their ids; of calls with the same name the first, whose schema is the tool's.
fn numbered(calls: Vec<ToolCall>) -> Vec<ToolCall> {
    let mut kept: Vec<ToolCall> = Vec::new();
    for call in calls {
        if kept.iter().all(|other| other.name != call.name) {
            kept.push(ToolCall { id: format!("call_{}", kept.len()), ..call });
        }
    }
    kept
}

fn action(calls: &[ToolCall]) -> Action {
    Action { calls: calls.iter().cloned().map(CallAttempt::Call).collect(), ..Action::text("") }
}

/// Returns the tool of a call, with the types of its arguments.
fn tool(call: &ToolCall) -> ToolSpec {
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let arguments = call.arguments.as_object().expect("an object");
    let properties: Map<String, Value> =
        arguments.iter().map(|(key, value)| (key.clone(), json!({"type": kind(value)}))).collect();
    ToolSpec {
        name: call.name.clone(),
        description: String::new(),
        parameters: json!({"type": "object", "properties": properties}),
    }
}

/// Checks what holds for every parsed turn.
fn check(action: &Action) -> Result<(), TestCaseError> {
    for (index, attempt) in action.calls.iter().enumerate() {
        let id = format!("call_{index}");
        match attempt {
            CallAttempt::Call(call) => {
                prop_assert_eq!(&call.id, &id);
                prop_assert!(call.arguments.is_object());
            }
            CallAttempt::Malformed(call) => {
                prop_assert_eq!(&call.id, &id);
                prop_assert!(call.raw.len() <= MAX_CALL_BYTES);
                prop_assert!(
                    !call.message.is_empty() && call.message.len() < 500,
                    "{}",
                    call.message
                );
            }
        }
    }
    Ok(())
}

/// Calls whose arguments every format can express.
fn plain_call() -> ToolCall {
    let arguments =
        json!({"part": 9_007_199_254_740_993_i64, "text": "a b\nc é", "deep": [1, {"b": null}]});
    ToolCall { id: "call_0".to_owned(), name: "look_up".to_owned(), arguments }
}

#[test]
fn every_form_is_written_as_itself_and_reads_back() {
    let call = plain_call();
    for (form, renderer) in FORMS.iter().zip(RENDERERS.iter()) {
        let mut call = call.clone();
        call.arguments.as_object_mut().expect("an object").remove("deep");
        let ids = renderer.write(&action(std::slice::from_ref(&call)));
        let text = renderer.text(&ids);
        assert!(text.contains(form.tag), "{}: {text}", form.tag);
        let read = renderer.parse(&ids, &[tool(&call)]);
        assert_eq!(read, action(std::slice::from_ref(&call)), "{text}");
    }
}

/// Returns the text of a call in each format, as its template writes it.
fn written() -> Vec<String> {
    let call = plain_call();
    let calls =
        [call.clone(), ToolCall { id: "call_1".to_owned(), name: "roll".to_owned(), ..call }];
    let texts = RENDERERS.iter().map(|renderer| renderer.text(&renderer.write(&action(&calls))));
    let llama = llama(true);
    texts.chain([llama.text(&llama.write(&action(&calls)))]).collect()
}

static WRITTEN: LazyLock<Vec<String>> = LazyLock::new(written);

/// A change of a text: a range is replaced.
fn changes() -> impl Strategy<Value = Vec<(Index, Index, String)>> {
    let other = prop_oneof![
        Just(String::new()),
        prop::sample::select(&MARKERS[..]).prop_map(str::to_owned),
        hostile_text(),
        Just("[".repeat(200)),
        Just("{\"a\":".repeat(200)),
    ];
    prop::collection::vec((any::<Index>(), any::<Index>(), other), 0..4)
}

fn changed(text: &str, changes: &[(Index, Index, String)]) -> String {
    let mut text = text.to_owned();
    for (from, length, other) in changes {
        let from = text.floor_char_boundary(from.index(text.len() + 1));
        let to = text.floor_char_boundary((from + length.index(12)).min(text.len()));
        text.replace_range(from..to.max(from), other);
    }
    text
}

proptest! {
    #[test]
    fn a_call_reads_back_in_every_form(calls in any_calls()) {
        let tools: Vec<ToolSpec> = calls.iter().map(tool).collect();
        let expected = action(&calls);
        for (form, renderer) in FORMS.iter().zip(RENDERERS.iter()) {
            let ids = renderer.write(&expected);
            let read = renderer.parse(&ids, &tools);
            prop_assert_eq!(&read, &expected, "{}: {}", form.tag, renderer.text(&ids));
        }
        let llama = llama(true);
        let ids = llama.write(&expected);
        prop_assert_eq!(&llama.parse(&ids, &tools), &expected, "{}", llama.text(&ids));
    }

    #[test]
    fn a_changed_call_is_read_in_every_form(changes in changes(), cut in any::<Index>(), is_cut in any::<bool>()) {
        for text in WRITTEN.iter() {
            let mut text = changed(text, &changes);
            if is_cut {
                text.truncate(text.floor_char_boundary(cut.index(text.len() + 1)));
            }
            for action in [parse_turn(&text), parse_llama_turn(&text)] {
                check(&action)?;
            }
        }
    }

    #[test]
    fn any_text_between_markers_is_read(
        pieces in prop::collection::vec((prop::sample::select(&MARKERS[..]), any_string()), 0..8),
    ) {
        let text: String = pieces.iter().flat_map(|(marker, text)| [*marker, text.as_str()]).collect();
        check(&parse_turn(&text))?;
        check(&parse_llama_turn(&text))?;
    }
}

/// A parser that is quadratic in the text's length would take minutes for these.
#[test]
fn a_megabyte_of_any_marker_is_read() {
    let megabyte = |piece: &str| piece.repeat((1 << 20) / piece.len());
    let counted = |piece: &str| -> String {
        (0..(1 << 20) / (piece.len() + 4)).map(|n| piece.replace('#', &n.to_string())).collect()
    };
    let tags = || FORMS.iter().map(|form| form.tag);
    let mut texts: Vec<String> = tags().chain(MARKERS).map(megabyte).collect();
    for form in WRITTEN.iter() {
        texts.push(megabyte(form));
        let deep =
            form.replace("a b", &"[".repeat(10_000)).replace(": [1, ", &": [".repeat(10_000));
        texts.push(deep);
    }
    for opening in tags() {
        texts.push(format!("{opening}{}", megabyte("<parameter=a>")));
        texts.push(format!("{opening}{}", megabyte("{\"name\": [")));
        texts.push(format!("{opening}f>{}", counted("<parameter=#>")));
        texts.push(format!("{opening}f{}", counted("<arg_key>#</arg_key>")));
        texts.push(format!("{opening}{}", counted("<invoke name=\"#\"><parameter name=\"#\">")));
        texts.push(format!("{opening}{}", counted("<｜tool▁call▁begin｜>#<｜tool▁sep｜>```")));
    }
    let parameters: Vec<String> = (0..4000).map(|n| format!("<parameter={n}>")).collect();
    let body = parameters.concat();
    texts.push(format!("<function=f>{body}</function>").repeat(16));
    texts.push(format!("<tool_call><function=f>{body}</function></tool_call>").repeat(16));
    for text in texts {
        for action in [parse_turn(&text), parse_llama_turn(&text)] {
            check(&action).expect("it holds of everything");
        }
    }
}

#[test]
fn a_key_written_twice_is_refused_in_few_words() {
    let key = "k".repeat(10_000);
    for text in [
        format!(
            "<tool_call>f\n<arg_key>{key}</arg_key>\n<arg_value>1</arg_value>\n<arg_key>{key}</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
        ),
        format!(
            "<function=f><parameter={key}>1</parameter><parameter={key}>2</parameter></function>"
        ),
        format!(
            "<tool_call>{{\"name\": \"f\", \"arguments\": {{\"{key}\": 1, \"{key}\": 2}}}}</tool_call>"
        ),
    ] {
        let read = parse_turn(&text);
        let [CallAttempt::Malformed(call)] = read.calls.as_slice() else { panic!("{read:?}") };
        assert!(call.message.contains("twice") && call.message.len() < 200, "{}", call.message);
    }
}
