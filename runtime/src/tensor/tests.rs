//! Tests of the eager run and of the recording.
