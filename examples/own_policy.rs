//! A policy on the other side of a connection: requests and answers are lines of JSON. It keeps the contract of policies,
//! and a trainer trains with it.

#![allow(clippy::print_stdout)] // programs that show something

use std::{error::Error, io, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use turnwise::environment::async_trait;
use turnwise::objective::{Clip, GroupAdvantage, GspoToken, LengthWeight};
use turnwise::rollout::{
    ChatAgents, Limits, Policy, PolicyError, PoolSettings, Sample, SampleRequest, StopSignal,
};
use turnwise::training::{OutcomeCredit, Parts, Schedule, Trainer, TrainerSettings, metric};
use turnwise::trajectory::{PolicyVersion, SampledTokens, StopReason, TokenId};
use turnwise_examples::Thermostat;
use turnwise_testkit::{AlphabetRenderer, TabularModel, conformance};

/// An answer on the wire. Every token has its log-probability and the version that sampled it.
#[derive(Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "an answer is written as soon as it is made")]
enum Answer {
    Sampled { tokens: SampledTokens, kept: Vec<Vec<TokenId>>, stop: StopReason, engine: String },
    Refused(String),
}

/// The policy at an address.
#[derive(Debug)]
struct Remote {
    address: SocketAddr,
}

impl Remote {
    /// Sends a request, and waits for the answer. If this future is dropped, the connection closes with it.
    async fn ask(&self, request: &SampleRequest) -> io::Result<Answer> {
        let mut stream = BufReader::new(TcpStream::connect(self.address).await?);
        stream.write_all(serde_json::to_string(request)?.as_bytes()).await?;
        stream.write_all(b"\n").await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    }
}

#[async_trait]
impl Policy for Remote {
    // A lower bound of the versions of later tokens; each token carries its own.
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        match self.ask(&request).await {
            Ok(Answer::Sampled { tokens, kept, stop, engine }) => {
                Ok(Sample { tokens: tokens.iter().collect(), kept, stop, engine })
            }
            Ok(Answer::Refused(why)) => Err(PolicyError::Refused(why)),
            Err(error) => Err(PolicyError::Unavailable(error.to_string())),
        }
    }
}

/// Serves a policy: one request for each connection.
async fn serve(listener: TcpListener, policy: Arc<dyn Policy>) {
    while let Ok((stream, _)) = listener.accept().await {
        let policy = policy.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(BufReader::new(stream), &*policy).await {
                println!("a connection broke: {error}");
            }
        });
    }
}

async fn answer(mut stream: BufReader<TcpStream>, policy: &dyn Policy) -> io::Result<()> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(()); // the request was dropped before it was sent
    }
    let answer = match policy.sample(serde_json::from_str(&line)?).await {
        Ok(Sample { tokens, kept, stop, engine }) => {
            Answer::Sampled { tokens: tokens.into(), kept, stop, engine }
        }
        Err(error) => Answer::Refused(error.to_string()),
    };
    stream.write_all(serde_json::to_string(&answer)?.as_bytes()).await?;
    stream.write_all(b"\n").await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let renderer = Arc::new(AlphabetRenderer::new("0123456789"));
    let model = TabularModel::new(renderer.n_ids());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let remote = Arc::new(Remote { address: listener.local_addr()? });
    tokio::spawn(serve(listener, Arc::new(model.clone())));

    // The whole contract, as a test: a panic names every promise that is broken.
    conformance::policy(remote.clone(), u32::try_from(renderer.n_ids())?).await;
    println!("the policy at {} keeps its contract", remote.address);

    let clip = Clip::new(0.2, 0.2)?;
    let parts = Parts {
        tasks: Arc::new(vec![Thermostat::new(6)]),
        agents: Arc::new(ChatAgents::new(renderer)),
        rubric: None,
        policy: remote,
        learner: model,
        objective: Box::new(GspoToken { clip, length_weight: LengthWeight::Mean }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let limits = Limits { max_turns: 4, max_turn_tokens: 2, ..Limits::default() };
    let rollout = PoolSettings { group_size: 16, limits, ..PoolSettings::default() };
    let schedule = Schedule { learning_rate: 10.0, ..Schedule::default() };
    let settings =
        TrainerSettings { groups_per_step: 4, rollout, schedule, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(parts, settings);
    while let Some(report) = trainer.step(&StopSignal::never()).await?.filter(|r| r.step < 100) {
        if report.step % 20 == 19 {
            let reward = report.metrics.get(metric::REWARD_MEAN).unwrap_or(0.0);
            println!("step {:3}  reward {reward:.2}", report.step);
        }
    }
    Ok(())
}
