//! Calls as published templates write them; `data/calls.py` makes the data with transformers.

use serde_json::{Value, json};
use turnwise_chat::{CallForm, TemplateRenderer, TemplateSettings, Thinking, Trust};
use turnwise_environment::{Action, CallAttempt, Message, ToolCall, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, StopReason};

use crate::support::trained;

const PLAIN: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Templates whose calls are not parsed, each with its reason.
const UNREAD: [(&str, &str); 4] = [
    ("GigaChat3-10B-A1.8B", "the call is a message of its own, behind the end of the turn"),
    ("SvalTek-Q3-CharThink-9B-temp", "the template escapes its own tags"),
    ("baseten-Llama-3.2-3B-Instruct-pythonic", "text has no quotes"),
    ("meetkai-functionary-medium-v3.2", "a name on a line of its own begins a call"),
];

fn tool() -> ToolSpec {
    let properties =
        json!({"a": {"type": "integer"}, "op": {"type": "string"}, "deep": {"type": "boolean"}});
    let parameters = json!({"type": "object", "properties": properties, "required": ["a", "op"]});
    ToolSpec { name: "calc".to_owned(), description: "Computes.".to_owned(), parameters }
}

fn parsed(calls: CallForm, turn: &str) -> Action {
    let settings = TemplateSettings { calls, ..TemplateSettings::default() };
    let renderer = TemplateRenderer::new(trained(), PLAIN, &Trust::Any, settings).expect("valid");
    renderer.parse(&trained().encode_with_markers(turn), &[tool()])
}

#[test]
fn calls_of_published_templates_are_read() {
    let data: Value = serde_json::from_str(include_str!("data/calls.json")).expect("JSON");
    let cases = data["cases"].as_array().expect("a list");
    let mut unread = Vec::new();
    for case in cases {
        let (name, turn) = (case["template"].as_str().unwrap(), case["turn"].as_str().unwrap());
        let is_read = [CallForm::Hermes, CallForm::Llama3].into_iter().any(|form| {
            let action = parsed(form, turn);
            let calls: Vec<_> = action.tool_calls().collect();
            matches!(calls[..], [call] if call.name == data["name"] && call.arguments == data["arguments"])
        });
        if !is_read {
            unread.push(name);
        }
    }
    let expected: Vec<&str> = UNREAD.iter().map(|(name, _)| *name).collect();
    assert_eq!(unread, expected, "of {}", cases.len());
}

/// A template that joins the arguments of a call to other text, so that they must be JSON text (`DeepSeek` V3).
const TEXT_ARGUMENTS: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<tool_call>{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments + '}</tool_call>' }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// A template that writes no close after a turn (GLM 4.6).
const UNCLOSED: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name + '\n' }}\
    {% for key, value in call.function.arguments.items() %}<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// A template with bare calls, on a tokenizer of another family.
const BARE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
    {% for call in m.tool_calls or [] %}{{ {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn of(template: &str, calls: CallForm) -> TemplateRenderer {
    let settings = TemplateSettings { calls, ..TemplateSettings::default() };
    TemplateRenderer::new(trained(), template, &Trust::Any, settings).expect("valid")
}

#[test]
fn a_template_reads_its_own_calls_in_its_own_form() {
    for (template, hermes, llama) in [
        (TEXT_ARGUMENTS, Some(true), Some(true)),
        (UNCLOSED, Some(true), Some(true)),
        (BARE, Some(false), Some(true)),
        (PLAIN, None, None),
    ] {
        for (form, expected) in [(CallForm::Hermes, hermes), (CallForm::Llama3, llama)] {
            assert_eq!(
                of(template, form).reads_its_calls(&tool()),
                expected,
                "{form:?} {template}"
            );
        }
    }
}

#[test]
fn a_call_is_written_whole_without_a_close() {
    let call = ToolCall {
        id: "call_0".to_owned(),
        name: "calc".to_owned(),
        arguments: json!({"a": 9_007_199_254_740_993_i64, "op": "-"}),
    };
    for template in [TEXT_ARGUMENTS, UNCLOSED, BARE] {
        let renderer = of(template, CallForm::Llama3);
        let action = Action { calls: vec![CallAttempt::Call(call.clone())], ..Action::text("") };
        let written = renderer.write(&action);
        assert_eq!(renderer.parse(&written, &[tool()]), action, "{}", renderer.text(&written));
        // Calls between thoughts and a thought's text are not bare calls.
        let thoughtful = trained().encode_with_markers("<think>{\"name\": \"calc\"}</think>7");
        assert_eq!(renderer.parse(&thoughtful, &[tool()]).calls, []);
    }
}

#[test]
fn a_call_without_a_close_stays_whole_in_history() {
    let renderer = of(UNCLOSED, CallForm::Hermes);
    let call =
        ToolCall { id: "call_0".to_owned(), name: "calc".to_owned(), arguments: json!({"a": 1}) };
    let action = Action { calls: vec![CallAttempt::Call(call)], ..Action::text("") };
    let sampled = renderer.write(&action);
    let messages = [Message::user("1?"), action.to_message(), Message::tool("call_0", "1")];
    let mut said = messages.each_ref().map(Said::new);
    said[1].drawn = Some(&sampled);
    let whole = renderer.render(&said, &[]).unwrap();
    let mut ids = Vec::new();
    whole.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
    let shown = renderer.text(&ids);
    assert_eq!(shown.matches("<arg_key>").count(), 1, "{shown}");
}

#[test]
fn a_turn_without_a_close_ends_with_the_next_role_where_the_model_ends_it_so() {
    let stop = ["<|im_end|>", "<|im_start|>"].map(str::to_owned).to_vec();
    let call =
        ToolCall { id: "call_0".to_owned(), name: "calc".to_owned(), arguments: json!({"a": 1}) };
    let calls = vec![CallAttempt::Call(call)];
    let actions = [Action::text("7"), Action { calls, ..Action::text("") }];
    for (thinking, action) in [Thinking::Keep, Thinking::Follow]
        .into_iter()
        .flat_map(|thinking| actions.iter().map(move |action| (thinking, action)))
    {
        let settings =
            TemplateSettings { stop: stop.clone(), thinking, ..TemplateSettings::default() };
        let renderer =
            TemplateRenderer::new(trained(), UNCLOSED, &Trust::Any, settings).expect("valid");
        let turn = renderer.write(action);
        let said = renderer.text(&turn);
        assert!(said.ends_with("<|im_start|>"), "{said}");
        let answer = match action.calls.len() {
            0 => Message::user("8?"),
            _ => Message::tool("call_0", "1"),
        };
        let messages = [Message::user("1?"), action.to_message(), answer];
        let mut said = messages.each_ref().map(Said::new);
        said[1].drawn = Some(&turn);
        let ids_of = |rendered: &Rendered| {
            let mut ids = rendered.close.clone();
            rendered.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
            ids.extend(&rendered.generation);
            ids
        };
        let whole = ids_of(&renderer.render(&said, &[]).expect("rendered"));
        // The role is written once, by the policy, and the conversation goes on behind it.
        let plain = messages.each_ref().map(Said::new);
        assert_eq!(whole, ids_of(&renderer.render(&plain, &[]).expect("rendered")));
        let asked = ids_of(&renderer.render(&said[..1], &[]).expect("rendered"));
        let ended = EndedTurn { ids: &turn, stop: StopReason::EndOfTurn };
        let bridged = renderer.bridge(ended, &said[..2], &messages[2..]).expect("bridged");
        let Bridged::Append(bridged) = bridged else { panic!("{bridged:?}") };
        assert_eq!(whole, [asked, turn.clone(), ids_of(&bridged)].concat());
    }
}

/// A template that ends a turn in history otherwise than the last one (Olmo 3).
const OTHER_CLOSE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<tool_call>' + {'name': call.function.name, 'arguments': call.function.arguments}|tojson + '</tool_call>' }}{% endfor %}\
    {{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_call_stands_once_in_history_that_closes_it_otherwise() {
    let stop = vec!["<|endoftext|>".to_owned()];
    let settings = TemplateSettings { stop, ..TemplateSettings::default() };
    let renderer =
        TemplateRenderer::new(trained(), OTHER_CLOSE, &Trust::Any, settings).expect("valid");
    let call =
        ToolCall { id: "call_0".to_owned(), name: "calc".to_owned(), arguments: json!({"a": 1}) };
    let action = Action { calls: vec![CallAttempt::Call(call)], ..Action::text("") };
    let sampled = renderer.write(&action);
    let messages = [Message::user("1?"), action.to_message(), Message::tool("call_0", "1")];
    let mut said = messages.each_ref().map(Said::new);
    said[1].drawn = Some(&sampled);
    let whole = renderer.render(&said, &[]).expect("rendered");
    let shown: String = whole.messages.iter().map(|spans| text_of(&renderer, spans)).collect();
    assert_eq!(shown.matches("arguments").count(), 1, "{shown}");
}

/// A template that does not write a turn that ends the conversation (Nemotron Nano 2).
const ONLY_HISTORY: &str = "{% for m in messages %}{% if m.role != 'assistant' or not loop.last %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<TOOLCALL>[' + {'name': call.function.name, 'arguments': call.function.arguments}|tojson + ']</TOOLCALL>' }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_call_is_written_as_in_history_where_the_template_leaves_out_a_last_turn() {
    let renderer = of(ONLY_HISTORY, CallForm::Hermes);
    let call =
        ToolCall { id: "call_0".to_owned(), name: "calc".to_owned(), arguments: json!({"a": 1}) };
    let calls = vec![CallAttempt::Call(call)];
    for reasoning in [None, Some("one".to_owned())] {
        let action = Action { calls: calls.clone(), reasoning, ..Action::text("") };
        let turn = renderer.write(&action);
        let said = renderer.text(&turn);
        assert!(said.ends_with("]</TOOLCALL><|im_end|>"), "{said}");
        assert_eq!(renderer.parse(&turn, &[]), action);
    }
}

/// A template that writes the name of a call again with its answer (Gemma 4).
const NAMED_ANSWER: &str = "{% for m in messages %}{% if m.role == 'tool' %}{{ 'response:' + messages[loop.index0 - 1].tool_calls[0].function.name + '=' + m.content + '\n' }}\
    {% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<tool_call>' + {'name': call.function.name, 'arguments': call.function.arguments}|tojson + '</tool_call>' }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn the_name_of_a_call_in_its_answer_is_no_part_of_the_turn() {
    let renderer = of(NAMED_ANSWER, CallForm::Hermes);
    let call =
        ToolCall { id: "call_0".to_owned(), name: "calc".to_owned(), arguments: json!({"a": 1}) };
    let action = Action { calls: vec![CallAttempt::Call(call)], ..Action::text("") };
    let sampled = renderer.write(&action);
    let messages = [Message::user("1?"), action.to_message(), Message::tool("call_0", "1")];
    let mut said = messages.each_ref().map(Said::new);
    said[1].drawn = Some(&sampled);
    let whole = renderer.render(&said, &[]).unwrap();
    let mut ids = Vec::new();
    whole.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
    let shown = renderer.text(&ids);
    assert!(shown.trim_end().ends_with("</tool_call><|im_end|>\nresponse:calc=1"), "{shown}");
}

/// Returns the text of a message's spans.
fn text_of(renderer: &TemplateRenderer, spans: &[Span]) -> String {
    let mut ids = Vec::new();
    for span in spans {
        span.extend_ids(&mut ids);
    }
    renderer.text(&ids)
}

/// A template without a close after a call, which writes the call's name again with its answer and nothing before the
/// next turn of a cycle of tools (Gemma 4, gpt-oss).
const CYCLE: &str = "{% for m in messages %}{% if m.role == 'tool' %}{{ 'response:' + messages[loop.index0 - 1].tool_calls[0].function.name + '=' + m.content + ';' }}\
    {% elif m.role == 'assistant' %}{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>model\n' }}{% endif %}\
    {% if m.reasoning_content and loop.nextitem is defined and messages[-1].role == 'tool' %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<TOOLCALL>[' + {'name': call.function.name, 'arguments': call.function.arguments}|tojson + ']</TOOLCALL>|' }}{% endfor %}\
    {% if not m.tool_calls %}{{ '<|im_end|>\n' }}{% endif %}\
    {% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|im_start|>model\n' }}{% endif %}";

#[test]
fn turns_of_a_cycle_of_tools_have_their_edges() {
    let settings = TemplateSettings { thinking: Thinking::Follow, ..TemplateSettings::default() };
    let renderer = TemplateRenderer::new(trained(), CYCLE, &Trust::Any, settings).expect("valid");
    let call = |a: i64| {
        let (id, name) = ("call_0".to_owned(), "calc".to_owned());
        let call = ToolCall { id, name, arguments: json!({"a": a}) };
        let calls = vec![CallAttempt::Call(call)];
        Action { calls, reasoning: Some("Hm.".to_owned()), ..Action::text("") }
    };
    let [first, second] = [call(1), call(2)].map(|action| (renderer.write(&action), action));
    assert!(trained().decode(&first.0).starts_with("<think>"), "{}", trained().decode(&first.0));
    let messages = [
        Message::user("?"),
        first.1.to_message(),
        Message::tool("call_0", "7"),
        second.1.to_message(),
        Message::tool("call_0", "8"),
        Message::user("!"),
    ];
    let mut said = messages.each_ref().map(Said::new);
    said[1].drawn = Some(&first.0);
    said[3].drawn = Some(&second.0);
    let whole = renderer.render(&said, &[tool()]).unwrap();
    let texts = whole.messages.iter().map(|spans| text_of(&renderer, spans));
    let expected = [
        "<|im_start|>user\n?<|im_end|>",
        "\n<|im_start|>model\n<TOOLCALL>[{\"name\": \"calc\", \"arguments\": {\"a\": 1}}]</TOOLCALL>|",
        "response:calc=7",
        ";<TOOLCALL>[{\"name\": \"calc\", \"arguments\": {\"a\": 2}}]</TOOLCALL>|",
        "response:calc=8",
        ";<|im_start|>user\n!<|im_end|>",
    ];
    assert_eq!(texts.collect::<Vec<_>>(), expected);
}

#[test]
fn a_history_has_the_lead_in_that_the_template_writes_there() {
    // The next turn begins with a text that history does not have.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n<judge>\n' }}{% endif %}";
    let settings = TemplateSettings { thinking: Thinking::Follow, ..TemplateSettings::default() };
    let renderer =
        TemplateRenderer::new(trained(), template, &Trust::Any, settings).expect("valid");
    let messages = [Message::user("2?"), Message::assistant("4"), Message::user("3?")];
    let sampled = renderer.write(&Action::text("4"));
    let mut said = messages.each_ref().map(Said::new);
    said[1].drawn = Some(&sampled);
    let whole = renderer.render(&said, &[]).unwrap();
    assert_eq!(text_of(&renderer, &whole.messages[1]), "\n<|im_start|>assistant\n4<|im_end|>");
}

#[test]
fn every_line_break_of_a_template_is_a_newline() {
    let renderer = of(
        "{{ 'a\r\nb' }}\r\n{% for m in messages %}\r\n{{ m.content }}\r{% endfor %}",
        CallForm::Hermes,
    );
    let question = Message::user("c\r\nd");
    let whole = renderer.render(&[Said::new(&question)], &[]).unwrap();
    let shown = text_of(&renderer, &whole.messages[0]) + &renderer.text(&whole.generation);
    assert_eq!(shown, "a\nb\nc\r\nd\n");
}

/// A template that shows the ids of calls and of answers.
const WITH_IDS: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
    {% if m.role == 'tool' %}{{ '(' + m.tool_call_id + ')' }}{% endif %}{{ m.content }}\
    {% for call in m.tool_calls or [] %}{{ '<tool_call>' + {'id': call.id, 'name': call.function.name, 'arguments': call.function.arguments}|tojson + '</tool_call>' }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn an_answer_has_the_id_that_the_turn_writes() {
    let renderer = of(WITH_IDS, CallForm::Hermes);
    let call = |id: &str| {
        format!(r#"<tool_call>{{"id": "{id}", "name": "calc", "arguments": {{}}}}</tool_call>"#)
    };
    for (written, shown) in [
        (["abcdefgh1", "x"], ["abcdefgh1", "x"]),
        // Ids that tell no calls apart are not used.
        (["x", "x"], ["call_0", "call_1"]),
        (["", "x"], ["call_0", "x"]),
    ] {
        let turn =
            trained().encode_with_markers(&format!("{}<|im_end|>", written.map(call).concat()));
        let action = renderer.parse(&turn, &[]);
        let ids: Vec<&str> = action.tool_calls().map(|call| call.id.as_str()).collect();
        assert_eq!(ids, ["call_0", "call_1"], "the environment sees numbers");
        let messages = [
            Message::user("?"),
            action.to_message(),
            Message::tool("call_1", "b"),
            Message::tool("call_0", "a"),
        ];
        let mut said = messages.each_ref().map(Said::new);
        said[1].drawn = Some(&turn);
        let whole = renderer.render(&said, &[tool()]).unwrap();
        let text = |n: usize| text_of(&renderer, &whole.messages[n]);
        assert!(text(2).contains(&format!("({})b", shown[1])), "{}", text(2));
        assert!(text(3).contains(&format!("({})a", shown[0])), "{}", text(3));
    }
}
