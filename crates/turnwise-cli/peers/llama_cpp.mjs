// Decodes sequences side by side with llama.cpp, through the library that node-llama-cpp ships.
//
// node llama_cpp.mjs MODEL.gguf SEQUENCES PROMPT TOKENS THREADS REPETITIONS
//
// Prints one line of JSON. real_model.py runs it.

import fs from "node:fs";
import {getLlama} from "node-llama-cpp";

const [path, ...numbers] = process.argv.slice(2);
const [sequences, prompt, tokens, threads, repetitions] = numbers.map(Number);
const status = (key) => Number(fs.readFileSync("/proc/self/status", "utf8").match(new RegExp(`^${key}:\\s+(\\d+)`, "m"))[1]) * 1024;

const start = status("VmRSS");
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: "error"});
const model = await llama.loadModel({modelPath: path, gpuLayers: 0});
const context = await model.createContext({
    sequences, contextSize: prompt + tokens + 8, batchSize: Math.max(512, sequences), threads,
});
const all = Array.from({length: sequences}, () => context.getSequence());

async function decode(sequence, index, round) {
    await sequence.clearHistory();
    const ids = Array.from({length: prompt}, (_, i) => 100 + (i * 37 + round * 11) % 40000);
    let drawn = 0;
    const options = {temperature: 1, topK: 0, topP: 1, minP: 0, seed: index + round * 1000, yieldEogToken: true};
    for await (const token of sequence.evaluate(ids, options)) {
        if (drawn === 0) began = Math.max(began, performance.now());
        if (++drawn === tokens) break;
    }
}

let began = 0;
const rates = [];
for (let round = 0; round <= repetitions; round++) {
    began = 0;
    await Promise.all(all.map((sequence, index) => decode(sequence, index, round)));
    // From the last sequence's first token on: prompts are not counted.
    if (round > 0) rates.push(sequences * (tokens - 1) / (performance.now() - began) * 1000);
}
console.log(JSON.stringify({sampled_tokens_per_s: rates, peak_bytes: status("VmHWM"), start_bytes: start}));
process.exit(0);
