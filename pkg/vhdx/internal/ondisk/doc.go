// Package ondisk turns the structures of a VHDX file into Go structs and back.
// It does no I/O and keeps no state. There is one file per structure, named as
// the specification ([MS-VHDX], "VHDX Format Specification v1.00") names it.
//
// Everything is little-endian and every reader treats its input as hostile.
//
// Invariants, cited by the tests:
//
//	I-OD-1  encode then decode is the identity for every value Encode accepts
//	I-OD-2  a checksum covers exactly the bytes the specification says, its own
//	        four bytes counted as zero
//	I-OD-3  no input makes a decoder panic
//	I-OD-4  nothing is allocated from a length that was not bounded first; what
//	        breaks a rule is refused, never clamped
//	I-OD-5  whatever a decoder accepts fits the signed 64-bit offsets of the
//	        caller: offset plus length never overflows
//
// Rules that concern one structure alone are checked here. Rules between
// structures (overlap of regions, log and blocks; sizes against the file's
// length) are the caller's.
package ondisk
