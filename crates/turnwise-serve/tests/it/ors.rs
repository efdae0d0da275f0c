//! An environment behind the Open Reward Standard, message by message.

use serde_json::{Value, json};
use turnwise_calculator::CalculatorSettings;
use turnwise_serve::{EnvironmentServer, Protocol, RewardForm, ServerSettings};

use crate::support::{run, send};

struct Client {
    server: EnvironmentServer,
    /// The headers of each request.
    headers: String,
}

impl Client {
    async fn new(settings: ServerSettings) -> Self {
        let calculator = CalculatorSettings { operations: 1, ..CalculatorSettings::default() };
        let suite = turnwise_calculator::suite(calculator).unwrap();
        Self {
            server: EnvironmentServer::bind(settings, suite).await.unwrap(),
            headers: String::new(),
        }
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let url = self.server.url();
        let address = url.strip_prefix("http://").unwrap();
        let (headers, length) = (&self.headers, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        send(address, &request).await
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.send("POST", path, &body.to_string()).await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// Opens a session with an episode of the first task, and returns its id.
    async fn start(&mut self) -> String {
        let (status, body) = self.send("POST", "/create_session", "{}").await;
        assert_eq!(status, 200, "{body}");
        let id = data(&body)[0].clone();
        self.headers = format!("{}X-Session-ID: {id}\r\n", self.headers);
        assert_eq!(
            self.post("/create", &json!({"split": "train", "index": 0})).await,
            json!({"sid": id})
        );
        id
    }

    async fn call(&self, name: &str, input: &Value) -> Value {
        let call = json!({"name": name, "input": input}).to_string();
        let (status, body) = self.send("POST", "/calculator/call", &call).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(data(&body).last().unwrap()).unwrap()
    }
}

/// The data of each event in a body of chunks.
fn data(body: &str) -> Vec<String> {
    body.lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.trim().to_owned())
        .collect()
}

/// The numbers and the operation of "Compute 7 + 5, left to right."
fn task(prompt: &str) -> (i64, String, i64) {
    let line = prompt.lines().filter_map(|line| line.strip_prefix("Compute ")).next_back().unwrap();
    let words: Vec<&str> = line.split([' ', ',']).collect();
    (words[0].parse().unwrap(), words[1].to_owned(), words[2].parse().unwrap())
}

#[test]
fn an_episode_is_a_prompt_tools_and_calls() {
    run(async {
        let mut client = Client::new(ServerSettings::new(Protocol::Ors)).await;
        assert_eq!(client.get("/health").await, json!({"status": "ok"}));
        assert_eq!(client.get("/list_environments").await, json!(["calculator"]));
        assert_eq!(client.get("/calculator/splits").await[0]["name"], "train");
        let n = client.post("/num_tasks", &json!({"split": "train"})).await["num_tasks"].clone();
        let range = json!({"split": "train", "start": 0, "stop": 2});
        let range = client.post("/task_range", &range).await;
        assert_eq!(
            (&range["tasks"][1]["id"], &range["env_name"]),
            (&json!(1), &json!("calculator"))
        );
        let first = client.post("/task", &json!({"index": 0})).await;
        assert_eq!((&first["task"]["id"], &first["env_name"]), (&json!(0), &json!("calculator")));
        let (status, body) = client.send("POST", "/task", &json!({"index": n}).to_string()).await;
        assert_eq!((status, body.contains("Invalid task index")), (400, true));
        assert_eq!(client.get("/tools").await["tools"][1]["name"], "answer");
        client.start().await;
        let prompt = client.get("/prompt").await[0]["text"].as_str().unwrap().to_owned();
        let tools = client.get("/tools").await;
        let names: Vec<_> =
            tools["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
        assert_eq!(names, ["calc", "answer"]);
        assert!(tools["tools"][0]["input_schema"]["properties"]["op"].is_object());

        let (a, op, b) = task(&prompt);
        let result = client.call("calc", &json!({"a": a, "op": op, "b": b})).await;
        let (output, value) = (&result["output"], &result["output"]["blocks"][0]["text"]);
        assert_eq!((&output["finished"], &output["reward"]), (&json!(false), &json!(0.5)));
        let value = value.as_str().unwrap().to_owned();
        let last = client.call("answer", &json!({"text": value})).await["output"].clone();
        assert_eq!((&last["finished"], &last["reward"]), (&json!(true), &json!(0.5)));
        assert_eq!(last["metadata"]["solved"], true);
        assert_eq!(
            client.call("answer", &json!({"text": "1"})).await["reason"],
            "episode_finished"
        );
    });
}

#[test]
fn what_cannot_be_called_is_refused_in_the_clients_terms() {
    run(async {
        let mut client = Client::new(ServerSettings::new(Protocol::Ors)).await;
        let id = client.start().await;
        assert_eq!(client.call("bad", &json!({})).await["reason"], "not_found");
        assert_eq!(client.call("answer", &json!({"text": 1})).await["reason"], "input_validation");
        // The environment answers wrong arguments itself; every key is there.
        let wrong = client.call("calc", &json!({"a": 1})).await;
        for key in ["blocks", "metadata", "reward", "finished"] {
            assert!(wrong["output"].as_object().unwrap().contains_key(key), "{wrong}");
        }
        let other = json!({"env_name": "nope", "index": 0}).to_string();
        assert_eq!(client.send("POST", "/create", &other).await.0, 404);
        assert_eq!(client.send("POST", "/nope/tasks", "{}").await.0, 404);
        assert_eq!(client.post("/ping", &json!({})).await, json!({"status": "ok"}));
        client.post("/delete_session", &json!({"sid": id})).await;
        assert_eq!(client.send("POST", "/ping", "{}").await.0, 404);
    });
}

#[test]
fn the_reward_of_all_turns_is_that_of_the_last_call() {
    run(async {
        let total =
            ServerSettings { reward_form: RewardForm::Total, ..ServerSettings::new(Protocol::Ors) };
        let mut client = Client::new(total).await;
        client.start().await;
        let prompt = client.get("/prompt").await[0]["text"].as_str().unwrap().to_owned();
        let (a, op, b) = task(&prompt);
        let result = client.call("calc", &json!({"a": a, "op": op, "b": b})).await;
        let text = result["output"]["blocks"][0]["text"].clone();
        let last = client.call("answer", &json!({"text": text})).await;
        assert_eq!(last["output"]["reward"], 1.0);
    });
}

#[test]
fn strangers_and_too_many_are_turned_away() {
    run(async {
        let limited = ServerSettings {
            token: Some("secret".to_owned()),
            max_sessions: 1,
            ..ServerSettings::new(Protocol::Ors)
        };
        let mut client = Client::new(limited).await;
        assert_eq!(client.send("GET", "/list_environments", "").await.0, 401);
        assert_eq!(client.get("/health").await, json!({"status": "ok"}));
        client.headers = "X-API-Key: secret\r\n".to_owned();
        client.start().await;
        let (status, body) = client.send("POST", "/create_session", "{}").await;
        assert_eq!((status, body.contains("1 episodes are open")), (503, true));
        client.headers += "Origin: https://evil.example\r\n";
        assert_eq!(client.send("GET", "/list_environments", "").await.0, 403);
        let everywhere = ServerSettings {
            address: "0.0.0.0:0".parse().unwrap(),
            ..ServerSettings::new(Protocol::Ors)
        };
        let open = Client::new(everywhere).await;
        assert!(open.server.token().is_some_and(|token| token.len() == 32));
    });
}
