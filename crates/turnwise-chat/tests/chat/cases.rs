//! Cases from the field that other projects handled wrongly, on templates of the same shapes. The expected values are
//! those of transformers 5.24 (its Jinja environment) and tokenizers 0.23.3.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use turnwise_chat::{
    CallForm, ChatMl, ChatMlSettings, TemplateRenderer, TemplateSettings, ToolPrompt, Trust,
};
use turnwise_environment::{
    Action, CallAttempt, Message, Observation, Role, TaskKey, ToolCall, ToolSpec,
};
use turnwise_rollout::{
    Act, AgentFactory, ChatAgents, Policy, PolicyError, Renderer, Room, Sample, SampleRequest,
};
use turnwise_trajectory::{GroupId, Identity, PolicyVersion, SampledToken, StopReason, TokenId};

use crate::support::{fixture, ids_in, ids_of, llama_tokenizer};

fn cases(kind: &str) -> Vec<Value> {
    let cases: Value = serde_json::from_str(include_str!("data/cases.json")).expect("JSON");
    let more: Value = serde_json::from_str(include_str!("data/neighbours.json")).expect("JSON");
    let all = [cases, more].into_iter().flat_map(|list| list.as_array().expect("a list").clone());
    all.filter(|case| case["kind"] == kind).collect()
}

pub(crate) fn message(value: &Value) -> Message {
    let role: Role = serde_json::from_value(value["role"].clone()).expect("a role");
    let calls = value["tool_calls"].as_array().into_iter().flatten().map(|call| ToolCall {
        id: call["id"].as_str().unwrap_or_default().to_owned(),
        name: call["function"]["name"].as_str().expect("a name").to_owned(),
        arguments: call["function"]["arguments"].clone(),
    });
    Message {
        reasoning: value["reasoning_content"].as_str().map(str::to_owned),
        tool_calls: calls.collect(),
        tool_call_id: value["tool_call_id"].as_str().map(str::to_owned),
        ..Message::new(role, value["content"].as_str().unwrap_or_default())
    }
}

fn messages(case: &Value) -> Vec<Message> {
    case["messages"].as_array().expect("messages").iter().map(message).collect()
}

pub(crate) fn tools(case: &Value) -> Vec<ToolSpec> {
    let tools = case["tools"].as_array().into_iter().flatten();
    tools.map(|tool| serde_json::from_value(tool["function"].clone()).expect("a tool")).collect()
}

fn settings(case: &Value) -> TemplateSettings {
    let mut settings = case["settings"].clone();
    settings.as_object_mut().expect("settings").remove("enable_thinking");
    serde_json::from_value(settings).expect("settings")
}

fn renderer(case: &Value) -> Arc<dyn Renderer> {
    if case["form"] == "qwen3" {
        let settings = ChatMlSettings {
            tools: ToolPrompt::Hermes,
            thinking: serde_json::from_value(case["settings"]["thinking"].clone()).expect("a mode"),
            enable_thinking: case["settings"]["enable_thinking"] != false,
            ..ChatMlSettings::default()
        };
        return Arc::new(ChatMl::new(fixture(), settings).expect("it has the markers"));
    }
    let template = case["template"].as_str().expect("a template");
    let renderer = TemplateRenderer::new(fixture(), template, &Trust::Any, settings(case));
    Arc::new(renderer.expect("a template"))
}

#[test]
fn conversations_are_rendered_as_transformers_renders_them() {
    for case in cases("render") {
        let renderer = renderer(&case);
        let opened = renderer.open(&Observation::new(messages(&case)), &tools(&case));
        let ids = ids_of(&opened.unwrap_or_else(|error| panic!("{}: {error}", case["id"])));
        assert_eq!(renderer.text(&ids), case["expected"]["text"], "{}", case["id"]);
        if case["expected"]["ids"].is_array() {
            assert_eq!(ids, ids_in(&case["expected"]["ids"]), "{}", case["id"]);
        }
    }
}

#[test]
fn turns_are_read() {
    for case in cases("parse") {
        let (tokenizer, form) = match case["form"].as_str() {
            Some("llama3") => (llama_tokenizer(), CallForm::Llama3),
            _ => (fixture(), CallForm::Hermes),
        };
        let stop = if form == CallForm::Llama3 { "<|eot_id|>" } else { "<|im_end|>" };
        let settings = TemplateSettings {
            stop: vec![stop.to_owned()],
            calls: form,
            ..TemplateSettings::default()
        };
        let renderer = TemplateRenderer::new(tokenizer.clone(), "", &Trust::Any, settings)
            .expect("a template");
        let turn = case["turn"].as_str().expect("a turn");
        let action = renderer.parse(&tokenizer.encode_with_markers(turn), &tools(&case));
        if let Some(calls) = case["expected"]["calls"].as_array() {
            let read: Vec<Value> = action.calls.iter().map(call).collect();
            assert_eq!(&read, calls, "{}", case["id"]);
        }
        if let Some(text) = case["expected"]["text"].as_str() {
            assert_eq!(action.text, text, "{}", case["id"]);
        }
        if let Some(reasoning) = case["expected"]["reasoning"].as_str() {
            assert_eq!(action.reasoning.as_deref(), Some(reasoning), "{}", case["id"]);
        }
    }
}

fn call(attempt: &CallAttempt) -> Value {
    match attempt {
        CallAttempt::Call(call) => {
            json!({"call": {"id": call.id, "name": call.name, "arguments": call.arguments}})
        }
        CallAttempt::Malformed(call) => json!({"malformed": {"error": call.error}}),
    }
}

/// A policy that returns these tokens, and records its prompt.
struct Scripted(Vec<TokenId>, std::sync::Mutex<Vec<TokenId>>);

#[async_trait]
impl Policy for Scripted {
    fn version(&self) -> PolicyVersion {
        PolicyVersion::default()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        self.1.lock().expect("a lock").clone_from(&request.prompt);
        let tokens = self.0.iter().map(|id| SampledToken::new(*id, 0.0, PolicyVersion::default()));
        let tokens = tokens.collect();
        Ok(Sample { tokens, stop: StopReason::EndOfTurn, ..Sample::new("") })
    }
}

pub(crate) fn identity() -> Identity {
    Identity {
        environment: String::new(),
        environment_version: 0,
        task: TaskKey::of(""),
        task_index: 0,
        group: GroupId(0),
        member: 0,
        attempt: 0,
        environment_seed: 0,
        sampling_seed: 0,
    }
}

/// The prompts and actions of an agent, and its number of branches at the end.
pub(crate) struct Played {
    pub(crate) prompts: Vec<Vec<TokenId>>,
    pub(crate) actions: Vec<Action>,
    pub(crate) n_branches: usize,
}

/// Plays a conversation: instead of each message of the assistant, the policy samples the next of `turns`.
pub(crate) async fn play(
    renderer: Arc<dyn Renderer>,
    messages: &[Message],
    tools: Vec<ToolSpec>,
    turns: &[Vec<TokenId>],
) -> Result<Played, String> {
    let agents = ChatAgents::new(renderer);
    let mut agent = agents.agent(&identity(), tools);
    let (mut heard, mut turns) = (Vec::new(), turns.iter());
    let (mut prompts, mut actions) = (Vec::new(), Vec::new());
    for message in messages {
        if message.role != Role::Assistant {
            heard.push(message.clone());
            continue;
        }
        let observation = Observation::new(std::mem::take(&mut heard));
        agent.observe(&observation).map_err(|error| error.to_string())?;
        let policy = Scripted(turns.next().expect("a turn").clone(), std::sync::Mutex::default());
        let room = Room { turn: 10_000, now: 10_000 };
        let act = agent.act(&policy, room).await.map_err(|error| error.to_string())?;
        prompts.push(policy.1.into_inner().expect("a lock"));
        if let Act::Decided(decision) = act {
            actions.push(decision.action);
        }
    }
    let n_branches = agent.graph().leaves().len();
    Ok(Played { prompts, actions, n_branches })
}

#[tokio::test]
async fn each_prompt_of_an_agent_is_the_templates() {
    for case in cases("play") {
        let renderer = renderer(&case);
        let drawn = case["drawn"].as_array().expect("turns").iter();
        let turns: Vec<Vec<TokenId>> = drawn
            .map(|text| fixture().encode_with_markers(text.as_str().expect("a turn")))
            .collect();
        let played = play(renderer.clone(), &messages(&case), tools(&case), &turns).await;
        let played = played.unwrap_or_else(|error| panic!("{}: {error}", case["id"]));
        let prompts: Vec<String> = played.prompts.iter().map(|ids| renderer.text(ids)).collect();
        assert_eq!(json!(prompts), case["expected"]["prompts"], "{}", case["id"]);
        if let Some(actions) = case["expected"]["actions"].as_array() {
            for (read, expected) in played.actions.iter().zip(actions) {
                assert_eq!(read.text, expected["text"], "{}", case["id"]);
                assert_eq!(json!(read.reasoning), expected["reasoning"], "{}", case["id"]);
            }
        }
        if let Some(n_branches) = case["expected"]["branches"].as_u64() {
            assert_eq!(played.n_branches as u64, n_branches, "{}", case["id"]);
        }
    }
}

const QWEN3: &str = include_str!("jinja/qwen3.jinja");

/// A template trims blanks, and a system message follows a tool's: sampled tokens stay unchanged.
///
/// Field 11
#[tokio::test]
async fn what_the_template_keeps_stays_as_it_was_drawn() {
    let settings = TemplateSettings {
        thinking: turnwise_chat::Thinking::Follow,
        ..TemplateSettings::default()
    };
    let renderer = Arc::new(
        TemplateRenderer::new(fixture(), QWEN3, &Trust::Any, settings).expect("a template"),
    );
    let turns = [
        "<think>\n  Look it up. \n\n</think>\n\n\n<tool_call>\n{\"name\":\"stock\",  \"arguments\":{\"part\":7}}\n</tool_call><|im_end|>",
        "<think>So it is.</think>12<|im_end|>",
        "Yes.<|im_end|>",
    ];
    let turns: Vec<Vec<TokenId>> =
        turns.iter().map(|turn| fixture().encode_with_markers(turn)).collect();
    let its_turn = || Message::assistant("");
    let messages = [
        Message::user("How many?"),
        its_turn(),
        Message::tool("call_0", "12"),
        Message::system("Be brief."),
        its_turn(),
        Message::user("Sure?"),
        its_turn(),
    ];
    let played = play(renderer.clone(), &messages, Vec::new(), &turns).await.expect("it plays");
    let held = [&played.prompts[0][..], &turns[0]].concat();
    assert!(played.prompts[1].starts_with(&held), "{}", renderer.text(&played.prompts[1]));
    // The question drops the thinking of both turns, and the tokens sampled after it stay.
    let last = renderer.text(&played.prompts[2]);
    assert!(
        !last.contains("think>") && last.contains("\"name\":\"stock\",  \"arguments\""),
        "{last}"
    );
    assert_eq!(played.n_branches, 2);
}

/// Mistral: ids have nine letters or digits.
#[tokio::test]
async fn a_template_that_refuses_ids_gets_others() {
    let template = "{%- for m in messages -%}{%- if m.role == 'tool' -%}{%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 -%}\
        {{ raise_exception('ids of calls have nine letters or digits') }}{%- endif -%}{{- '<|im_start|>tool ' + m.tool_call_id + '\n' + m.content + '<|im_end|>\n' -}}\
        {%- elif m.tool_calls -%}{{- '<|im_start|>assistant\n' -}}{%- for c in m.tool_calls -%}{%- if c.id | length != 9 -%}{{ raise_exception('nine') }}{%- endif -%}\
        {{- '<tool_call>' + c.id + '</tool_call>' -}}{%- endfor -%}{{- '<|im_end|>\n' -}}\
        {%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}\
        {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}";
    for thinking in [turnwise_chat::Thinking::Keep, turnwise_chat::Thinking::Follow] {
        let settings = TemplateSettings { thinking, ..TemplateSettings::default() };
        let renderer = TemplateRenderer::new(fixture(), template, &Trust::Any, settings);
        let renderer = Arc::new(renderer.expect("a template"));
        let turn = "<tool_call>\n{\"name\": \"stock\", \"arguments\": {\"part\": 7}}\n</tool_call><|im_end|>";
        let turns = vec![fixture().encode_with_markers(turn); 3];
        let answer = || Message::tool("call_0", "12");
        let turn = || Message::assistant("");
        let messages = [Message::user("How many?"), turn(), answer(), turn(), answer(), turn()];
        let played = play(renderer.clone(), &messages, Vec::new(), &turns).await.expect("it plays");
        let prompt = renderer.text(&played.prompts[2]);
        assert!(
            prompt.contains("tool call00000\n12") && prompt.contains("tool call00001\n12"),
            "{prompt}"
        );
    }
    // A conversation without ids is rendered too, and valid ids stay.
    let renderer =
        TemplateRenderer::new(fixture(), template, &Trust::Any, TemplateSettings::default());
    let renderer = renderer.expect("a template");
    for (id, shown) in [("", "call00000"), ("aB3456789", "aB3456789")] {
        let call = ToolCall { id: id.to_owned(), name: "stock".to_owned(), arguments: json!({}) };
        let asked = Message { tool_calls: vec![call], ..Message::assistant("") };
        let mut answer = Message::tool(id, "12");
        answer.tool_call_id = answer.tool_call_id.filter(|id| !id.is_empty());
        let messages = vec![Message::user("How many?"), asked, answer];
        let text =
            renderer.text(&ids_of(&renderer.open(&messages.into(), &[]).expect("it renders")));
        assert_eq!(text.matches(shown).count(), 2, "{text}");
    }
}

#[test]
fn a_template_that_writes_too_much_is_said_to() {
    let template = "{%- for m in messages -%}{{- m.content + '<|im_end|>' -}}{%- endfor -%}";
    let settings = TemplateSettings { max_context_tokens: 1000, ..TemplateSettings::default() };
    let renderer =
        TemplateRenderer::new(fixture(), template, &Trust::Any, settings).expect("a template");
    let error =
        renderer.open(&"word ".repeat(2000).as_str().into(), &[]).expect_err("it is too long");
    assert!(error.to_string().contains("writes more than 4000 bytes"), "{error}");
}

/// The format in which a template writes calls is parsed and used for demonstrations; an unsupported format is
/// detected.
#[test]
fn calls_are_written_as_the_template_writes_them() {
    let written = |call: &str| {
        format!(
            "{{%- for m in messages -%}}{{{{- '<|im_start|>' + m.role + '\\n' + m.content -}}}}{{%- for c in m.tool_calls or [] -%}}{call}{{%- endfor -%}}\
             {{{{- '<|im_end|>\\n' -}}}}{{%- endfor -%}}{{%- if add_generation_prompt -%}}{{{{- '<|im_start|>assistant\\n' -}}}}{{%- endif -%}}"
        )
    };
    let xml = "{{- '<tool_call>\\n<function=' + c.function.name + '>\\n' -}}{%- for k, v in c.function.arguments.items() -%}\
        {{- '<parameter=' + k + '>\\n' ~ v ~ '\\n</parameter>\\n' -}}{%- endfor -%}{{- '</function>\\n</tool_call>' -}}";
    let unknown = "{{- '!!' + c.function.name + '!!' -}}";
    let json = "{{- '<tool_call>\\n' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\\n</tool_call>' -}}";
    let tools = tools(&cases("parse")[0]);
    for (form, reads) in [(xml, Some(true)), (unknown, Some(false)), (json, Some(true)), ("", None)]
    {
        let renderer = TemplateRenderer::new(
            fixture(),
            &written(form),
            &Trust::Any,
            TemplateSettings::default(),
        );
        let renderer = renderer.expect("a template");
        assert_eq!(renderer.reads_its_calls(&tools[0]), reads, "{form}");
        let call = ToolCall {
            id: "call_0".to_owned(),
            name: "stock".to_owned(),
            arguments: json!({"part": 7}),
        };
        let action = Action { calls: vec![CallAttempt::Call(call)], ..Action::text("I look.") };
        let ids = renderer.write(&action);
        assert_eq!(renderer.parse(&ids, &tools), action, "{form}");
        assert_eq!(renderer.text(&ids).contains("<parameter=part>\n7\n"), form == xml, "{form}");
    }
}
