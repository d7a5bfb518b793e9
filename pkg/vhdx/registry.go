package vhdx

import (
	"sync"
)

// FileID tells one file of this machine from all others.
type FileID struct{ Device, Inode uint64 }

// Identified is a [File] that can tell whether it is the same as another. A
// parent that is Identified is opened once in the process, however many
// children it has.
type Identified interface {
	Identity() FileID
}

// parentRef is an open parent, shared by all who hold it. The image is
// read-only, or the frozen head that a rotation left.
type parentRef struct {
	im    *Image
	id    FileID
	known bool // id is valid and the registry has it
	users int  // guarded by registry.mu
}

// registry has the open parents of the process that can be identified.
type registry struct {
	mu   sync.Mutex
	open map[FileID]*parentRef
}

var parents = registry{open: map[FileID]*parentRef{}}

// find returns the open parent with this identity, for one more user, or nil.
func (r *registry) find(id FileID) *parentRef {
	r.mu.Lock()
	defer r.mu.Unlock()
	ref := r.open[id]
	if ref != nil {
		ref.users++
	}
	return ref
}

// add takes a parent in, with one user. Another open of the same file may have
// been quicker: then that is what counts, and im is closed.
func (r *registry) add(im *Image) *parentRef {
	ref := &parentRef{im: im, users: 1}
	if ref.id, ref.known = identity(im.f); !ref.known {
		return ref
	}
	r.mu.Lock()
	first := r.open[ref.id]
	if first == nil {
		r.open[ref.id] = ref
	} else {
		first.users++
	}
	r.mu.Unlock()
	if first == nil {
		return ref
	}
	_ = im.Close() // nothing was written
	return first
}

// identity returns that of a file, or of the file below an overlay.
func identity(f File) (FileID, bool) {
	if o, ok := f.(*overlayFile); ok {
		f = o.File
	}
	own, ok := f.(Identified)
	if !ok {
		return FileID{}, false
	}
	return own.Identity(), true
}

// addFrozen takes in a head that has been rotated away, and ends its own use
// as a head. From now on others may open it as a parent.
func (r *registry) addFrozen(ref *parentRef) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ref.users--
	if id, ok := identity(ref.im.f); ok && r.open[id] == nil {
		ref.id, ref.known = id, true
		r.open[id] = ref
	}
	if l, ok := ref.im.f.(locker); ok {
		_ = l.lock(false) // it stays exclusive otherwise, which is safe and in the way of others only
	}
}

// release ends one use; the last closes the image.
func (r *registry) release(ref *parentRef) error {
	r.mu.Lock()
	ref.users--
	last := ref.users == 0
	if last && ref.known && r.open[ref.id] == ref {
		delete(r.open, ref.id)
	}
	r.mu.Unlock()
	if !last {
		return nil
	}
	return ref.im.closeSelf()
}
