// Package vhdxtest has what it takes to cut the power of an image at every
// step and to prove what it shows afterwards:
//
//   - [File], a medium in memory that knows durable from volatile, counts its
//     operations, fails on demand and dies at a chosen step;
//   - [Snapshot], the medium between two operations, from which a [Plan]
//     builds one of the many states that a power cut there can leave;
//   - [Model], the virtual disk as the guest may expect it, which tells
//     acceptable bytes from foreign ones;
//   - [Layout], an independent reader of a clean image.
//
// # What a power cut can do
//
//	durable state + every operation since, each persisted or not
//	                                       |
//	  write, punch, zero   split into sectors of 512 B or 4 KiB, each of
//	                       them persisted or not on its own
//	  size change          persisted or not, whatever became of the data;
//	                       data without its size is lost, size without its
//	                       data reads zero
//
// Operations are kept in the order they were issued, so a sector shows the
// newest of its persisted versions: any subset gives any reordering.
//
// # Invariants
//
//	I-TEST-1  An operation that returned before Sync began is durable when that Sync succeeds; one that had not is undecided.
//	I-TEST-2  After a failed Sync the operations it covered are undecided for ever: no later Sync decides them.
//	I-TEST-3  Reads see every operation at once, whatever is durable.
//	I-TEST-4  A clone shares pages and changes to either are invisible to the other.
//	I-TEST-5  Two files have the same Hash if size and bytes are the same, however they came to be.
//
// The package imports nothing of this module, so that tests inside package
// vhdx can use it as well.
package vhdxtest
