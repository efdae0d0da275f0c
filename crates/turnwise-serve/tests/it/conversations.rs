//! What a program says becomes a trajectory whose sampled tokens are those of the engine.

use serde_json::{Value, json};
use turnwise_rollout::{Allowance, Progress, Renderer};
use turnwise_testkit::scene;
use turnwise_trajectory::{Author, Node, Outcome, StopReason, Trajectory};

use crate::support::{Program, finished, run, user};

/// Returns the texts of the sampled nodes, from their tokens.
fn sampled_texts(program: &Program, trajectory: &Trajectory) -> Vec<String> {
    let nodes = trajectory.graph.nodes().iter().filter(|node| node.author == Author::Policy);
    let ids = nodes.map(|node| node.sampled().map(|token| token.id).collect::<Vec<_>>());
    ids.map(|ids| program.renderer.text(&ids)).collect()
}

fn is_sampled(node: &Node) -> bool {
    node.sampled().next().is_some()
}

#[test]
fn a_conversation_that_grows_is_one_branch_and_its_tokens_are_those_that_were_sampled() {
    run(async {
        let program = Program::new().await;
        let mut said = Vec::new();
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let mut messages = vec![user("first")];
                for text in ["second", "third", "last"] {
                    let (response, message) = session.chat(&json!({"messages": messages})).await;
                    assert_eq!(response["object"], "chat.completion");
                    said.push(message["content"].as_str().unwrap().to_owned());
                    messages.extend([message, user(text)]);
                }
                let reward = json!({"reward": 0.75, "solved": true});
                assert_eq!(session.post("/reward", &reward).await.0, 200);
                program.exit(0);
            })
            .await;
        assert_eq!((&trajectory.outcome, trajectory.solved), (&Outcome::Done, true));
        assert_eq!(trajectory.reward(), Some(0.75));
        assert_eq!(trajectory.turns.len(), 3);
        // One path: a message of the program and a turn of the model, in turns.
        assert_eq!(trajectory.graph.leaves().len(), 1);
        let sampled: Vec<bool> = trajectory.graph.nodes().iter().map(is_sampled).collect();
        assert_eq!(sampled, [false, true, false, true, false, true]);
        let texts = sampled_texts(&program, &trajectory);
        assert!(texts.iter().zip(&said).all(|(text, said)| text.starts_with(said.as_str())));
    });
}

#[test]
fn a_history_that_is_rewritten_is_a_branch_and_so_is_another_beginning() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let (_, one) = session.chat(&json!({"messages": [user("a")]})).await;
                // The answer is dropped, as programs do that shorten their history.
                session.chat(&json!({"messages": [user("a"), user("b")]})).await;
                // Another agent of the same program.
                session.chat(&json!({"messages": [user("c")]})).await;
                // The first conversation goes on, after all that.
                session.chat(&json!({"messages": [user("a"), one, user("d")]})).await;
                program.exit(0);
            })
            .await;
        let graph = &trajectory.graph;
        let roots = graph.nodes().iter().filter(|node| node.parent.is_none()).count();
        assert_eq!((roots, graph.leaves().len()), (2, 3));
        // Each turn was sampled once, and no node repeats it.
        let sampled = graph.nodes().iter().filter(|node| is_sampled(node)).count();
        let of_policy = graph.nodes().iter().filter(|node| node.author == Author::Policy).count();
        assert_eq!((sampled, of_policy), (4, 4));
        let last = graph.path_to(*graph.leaves().last().unwrap());
        assert_eq!(last.iter().filter(|id| is_sampled(graph.node(**id))).count(), 2);
    });
}

#[test]
fn several_answers_to_one_request_are_branches_of_it() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let request = json!({"messages": [user("a")], "n": 3, "logprobs": true});
                let (response, _) = session.chat(&request).await;
                let choices = response["choices"].as_array().unwrap();
                assert_eq!(choices.len(), 3);
                let n_tokens: usize = choices
                    .iter()
                    .map(|choice| choice["logprobs"]["content"].as_array().unwrap().len())
                    .sum();
                assert_eq!(response["usage"]["completion_tokens"], n_tokens);
                program.exit(0);
            })
            .await;
        let parents: Vec<_> =
            trajectory.turns.iter().map(|turn| trajectory.graph.node(turn.node).parent).collect();
        assert_eq!(parents.len(), 3);
        assert!(parents.iter().all(|parent| *parent == parents[0]));
    });
}

#[test]
fn requests_at_the_same_time_are_branches() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let asks: Vec<Value> =
                    ["a", "b", "c"].map(|text| json!({"messages": [user(text)]})).to_vec();
                tokio::join!(
                    session.chat(&asks[0]),
                    session.chat(&asks[1]),
                    session.chat(&asks[2])
                );
                program.exit(0);
            })
            .await;
        assert_eq!((trajectory.turns.len(), trajectory.graph.leaves().len()), (3, 3));
    });
}

#[test]
fn a_turn_ends_at_the_programs_own_limits() {
    run(async {
        let program = Program::new().await;
        let mut finish = String::new();
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let request = json!({"messages": [user("a")], "max_tokens": 1});
                let (response, _) = session.chat(&request).await;
                finish = response["choices"][0]["finish_reason"].to_string();
                // Every turn of at least one letter contains one of them.
                let request = json!({"messages": [user("b")], "stop": ["a", "b", "c"]});
                let (_, message) = session.chat(&request).await;
                assert_eq!(message["content"], "");
                program.exit(0);
            })
            .await;
        let [short, stopped] = &trajectory.turns[..] else { panic!("two turns") };
        let n_tokens =
            |of: &turnwise_trajectory::Turn| trajectory.graph.node(of.node).sampled().count();
        assert_eq!((n_tokens(short), n_tokens(stopped)), (1, 1));
        let expected = if short.stop == StopReason::MaxTokens { "\"length\"" } else { "\"stop\"" };
        assert_eq!(finish, expected);
        assert!(matches!(stopped.stop, StopReason::StopText | StopReason::EndOfTurn));
    });
}

#[test]
fn streams_and_the_other_surface_say_the_same() {
    run(async {
        let program = Program::new().await;
        let trajectory = program
            .played(async {
                let session = program.session().await;
                let request = json!({"messages": [user("a")], "stream": true, "stream_options": {"include_usage": true}});
                let (status, body) = session.post("/v1/chat/completions", &request).await;
                assert_eq!(status, 200);
                assert!(body.contains("chat.completion.chunk") && body.contains("[DONE]"), "{body}");
                let request = json!({"max_tokens": 4, "messages": [user("b")]});
                let (status, body) = session.post("/v1/messages", &request).await;
                assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()["type"].as_str()), (200, Some("message")));
                let request = json!({"max_tokens": 4, "messages": [user("c")], "stream": true});
                let (_, body) = session.post("/v1/messages", &request).await;
                assert!(body.contains("event: message_stop"), "{body}");
                program.exit(0);
            })
            .await;
        assert_eq!(trajectory.turns.len(), 3);
    });
}

#[test]
fn a_turn_that_is_cut_goes_on_while_the_program_waits() {
    run(async {
        let program = Program::new().await;
        let test = async {
            let session = program.session().await;
            session.chat(&json!({"messages": [user("a")]})).await;
            program.exit(0);
        };
        let episode = async {
            let mut episode = program.episode(scene::limits());
            let mut n_cuts = 0;
            loop {
                match episode.advance(&program.model, &Allowance::tokens(1)).await {
                    Progress::Suspended(suspended) => episode = suspended,
                    finished @ Progress::Finished(_) => break (finished, n_cuts),
                }
                n_cuts += 1;
            }
        };
        let ((progress, n_cuts), ()) = tokio::join!(episode, test);
        let trajectory = finished(progress);
        let n_tokens = trajectory.graph.nodes().iter().flat_map(Node::sampled).count();
        assert_eq!(
            n_cuts,
            n_tokens - usize::from(trajectory.turns[0].stop == StopReason::EndOfTurn)
        );
        assert_eq!(trajectory.outcome, Outcome::Done);
    });
}
