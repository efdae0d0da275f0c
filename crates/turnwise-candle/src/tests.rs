mod checkpoint;
mod engine;
mod families;
mod field;
mod fixture;
mod forest;
mod forward;
mod gguf;
mod learner;
mod lora;
mod mixture;
mod not_finite;
mod operations;
mod packed_base;
mod parity;
mod peft;
mod refusals;
mod rounded;
mod sharing;
mod tensors;
mod truncation;
mod variants;
mod window;

fn block_on<R>(future: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(future)
}
