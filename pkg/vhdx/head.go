package vhdx

// An Image that has been rotated hands every request on to the image that has
// taken its place: who holds it need not know. The old one stays what it was,
// frozen, and lies below the new one.

// gate keeps writes out while a rotation is under way.
type gate struct{ opened chan struct{} }

// head returns the image that requests go to.
func (im *Image) head() *Image {
	for {
		next := im.successor.Load()
		if next == nil {
			return im
		}
		im = next
	}
}

// enterWrite returns the head with its session begun, and a pin that keeps it
// the head: a rotation waits for it.
func (im *Image) enterWrite() (*Image, uint32, error) {
	for {
		if err := im.head().begin(); err != nil {
			return nil, 0, err
		}
		h, pin := im.enter()
		if h.begun.Load() {
			return h, pin, nil
		}
		h.pins.leave(pin)
	}
}

// enter is enterWrite for a caller who begins the session itself, if at all.
// Who has entered must not enter again: a rotation may be waiting.
func (im *Image) enter() (*Image, uint32) {
	for {
		h := im.head()
		pin := h.pins.enter()
		g := h.gate.Load()
		if g == nil {
			return h, pin
		}
		h.pins.leave(pin)
		<-g.opened
	}
}

// lockWritable returns the head with its session begun and its committing
// held, which keeps it the head.
func (im *Image) lockWritable() (*Image, error) {
	for {
		if err := im.head().begin(); err != nil {
			return nil, err
		}
		h := im.lockHead()
		if h.begun.Load() {
			return h, nil
		}
		h.committing.Unlock() // another has taken its place meanwhile
	}
}

// lockHead returns the head with its committing held, which keeps it the head.
func (im *Image) lockHead() *Image {
	for {
		h := im.head()
		h.committing.Lock()
		if !h.frozen.Load() {
			return h
		}
		h.committing.Unlock()
	}
}
