// Package fsx does file work on a directory that other machines, other
// programs and other people also write to.
//
// A [Tree] never leaves its directory (os.Root), never follows a symlink
// inside it either, and opens nothing but regular files, without blocking.
// What it writes is durable when the call returns:
//
//	Replace:   write temp -> sync temp -> rename -> sync directory
//	LinkOnce:  write temp -> sync temp -> link   -> sync directory -> unlink temp
//	Remove:    unlink -> sync directory
//
// Temporary files live in one directory of the tree, so that what a crash
// leaves behind is found without a walk.
//
// renameio is not used here: it syncs no directory, has no link-once, and a
// crash test needs a hook before every single change.
package fsx
