//! The text form of the IR. `parse(print(x)) == x`.
