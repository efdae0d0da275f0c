//! Properties of records.

mod records;
