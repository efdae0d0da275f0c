//! Checkpoints are there at every moment, whatever the disk does.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::sync::Arc;

use turnwise_testkit::TabularModel;
use turnwise_training::{
    Checkpoints, OutcomeCredit, Parts, Trainer, TrainerSettings, save_weights, verify_weights,
};

use crate::support::{OBJECTIVE, OUTCOME, agents, block_on, echoes};

fn trainer() -> Trainer<TabularModel> {
    let model = TabularModel::new(4);
    let credit: OutcomeCredit = OUTCOME;
    let parts = Parts {
        tasks: Arc::new(echoes(4, true)),
        agents: Arc::new(agents()),
        rubric: None,
        policy: Arc::new(model.clone()),
        learner: model,
        objective: Box::new(OBJECTIVE),
        credit: Box::new(credit),
    };
    Trainer::new(parts, TrainerSettings::default())
}

fn is_whole(checkpoints: &Checkpoints) -> bool {
    let newest = checkpoints.newest().expect("one is whole").expect("one is there");
    newest.notes.is_empty()
}

/// Field 1: while a published step is written again it is there and whole, and a save that fails leaves it as it was.
#[test]
fn a_published_step_is_there_until_the_new_one_takes_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), 2);
    let mut trainer = trainer();
    block_on(async {
        let write = |text: &'static str| {
            move |directory: &Path| std::fs::write(directory.join("note.txt"), text)
        };
        let published =
            checkpoints.save(&mut trainer, write("first")).await.expect("it is written");
        let read = || std::fs::read_to_string(published.join("note.txt")).expect("it is there");
        let looked = Cell::new(false);
        let look = |directory: &Path| {
            assert!(is_whole(&checkpoints) && read() == "first");
            looked.set(true);
            write("second")(directory)
        };
        checkpoints.save(&mut trainer, look).await.expect("it is written");
        assert!(looked.get() && is_whole(&checkpoints) && read() == "second");
        let fails = |_: &Path| Err(io::Error::from(io::ErrorKind::StorageFull));
        let error = checkpoints.save(&mut trainer, fails).await.expect_err("the disk is full");
        assert!(error.is_of_the_disk(), "{error}");
        assert!(is_whole(&checkpoints) && read() == "second");
    });
}

/// Field 15: a disk that fails for a while costs a pause.
#[test]
fn a_disk_that_fails_for_a_while_is_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), 2);
    let mut trainer = trainer();
    block_on(async {
        let tries = Cell::new(0);
        let fails_twice = |_: &Path| {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        };
        checkpoints.save(&mut trainer, fails_twice).await.expect("there is room at last");
        assert_eq!(tries.get(), 3);
        assert!(is_whole(&checkpoints));
    });
}

/// Field 4: weights that a run depends on are compared with what was written.
#[test]
fn saved_weights_are_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("reference");
    let mut model = TabularModel::new(4);
    block_on(save_weights(&mut model, &directory, |_| Ok(()))).expect("they are written");
    verify_weights(&directory).expect("they are as they were written");
    let table = directory.join("table.json");
    let mut text = std::fs::read_to_string(&table).expect("it is there");
    text.push(' ');
    std::fs::write(&table, text).expect("it is written");
    let error = verify_weights(&directory).expect_err("they were changed").to_string();
    assert!(error.contains("table.json: it has"), "{error}");
}
