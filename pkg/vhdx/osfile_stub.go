package vhdx

import "os"

// OSFile is a File on an operating system file.
type OSFile struct{ f *os.File }

// FileOptions says how an OSFile does its I/O.
type FileOptions struct {
	ReadOnly bool // takes a shared lock instead of an exclusive one
	Buffered bool // never O_DIRECT; default: O_DIRECT where the filesystem really does it
	NoLock   bool
}

// NewOSFile takes f over: sets O_DIRECT where it works, takes an OFD lock on
// this very description (ErrInUse). On error f stays open and the caller's.
func NewOSFile(f *os.File, o FileOptions) (*OSFile, error) { panic("stub") }

func (f *OSFile) ReadAt(p []byte, off int64) (int, error)  { panic("stub") }
func (f *OSFile) WriteAt(p []byte, off int64) (int, error) { panic("stub") }
func (f *OSFile) Sync() error                              { panic("stub") }
func (f *OSFile) Truncate(size int64) error                { panic("stub") }
func (f *OSFile) Size() (int64, error)                     { panic("stub") }
func (f *OSFile) Close() error                             { panic("stub") }
func (f *OSFile) Name() string                             { panic("stub") }
