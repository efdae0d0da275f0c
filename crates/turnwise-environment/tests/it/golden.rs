//! Golden vectors: seeds, random numbers and keys of tasks are part of every record, so that they must never change.

use turnwise_environment::{Random, TaskKey, derive_seed};

#[test]
fn derived_seeds_are_what_they_were() {
    let derived = [(0, 0), (0, 1), (1, 0), (7, 42), (u64::MAX, u64::MAX)]
        .map(|(seed, label)| derive_seed(seed, label));
    assert_eq!(
        derived,
        [
            5_197_578_548_964_807_871,
            11_385_487_063_155_714_807,
            15_916_886_550_466_581_944,
            15_379_744_662_986_335_453,
            5_066_756_352_113_716_771
        ]
    );
}

#[test]
fn the_random_stream_is_what_it_was() {
    let mut random = Random::new(42);
    assert_eq!(
        [0; 4].map(|_: u64| random.next_u64()),
        [
            13_679_457_532_755_275_413,
            2_949_826_092_126_892_291,
            5_139_283_748_462_763_858,
            6_349_198_060_258_255_764
        ]
    );
    assert_eq!(
        [0.0; 2].map(|_: f64| random.uniform().to_bits()),
        [4_585_641_545_927_528_512, 4_605_995_522_829_291_547]
    );
    assert_eq!([0; 6].map(|_: u64| random.below(10)), [2, 8, 3, 6, 2, 4]);
    let mut order = [0, 1, 2, 3, 4, 5, 6, 7];
    random.shuffle(&mut order);
    assert_eq!(order, [2, 5, 7, 0, 1, 6, 3, 4]);
}

#[test]
fn the_keys_of_tasks_are_what_they_were() {
    let keys = ["", "one", "Guess { number: 7 }", "ä\n"].map(|text| TaskKey::of(text).to_string());
    assert_eq!(
        keys,
        [
            "6c62272e07bb014262b821756295c58d",
            "a68d369a048b5822836dbc796631923f",
            "dceb7c5258d73c13439571e4df40b338",
            "a68a93eb658b5822836dbc7850f79be0"
        ]
    );
}
