package fuseloop

import "runtime/debug"

// crashes says whose the panic is that f dies of, and lets it go on: the trace
// shows where it began. A fault of memory that is mapped, such as a journal whose
// file has been cut short, becomes a panic too.
func (s *session) crashes(f func()) {
	debug.SetPanicOnFault(true)
	whole := false
	defer func() {
		if !whole && s.crashing != nil {
			s.crashing()
		}
	}()
	f()
	whole = true
}
