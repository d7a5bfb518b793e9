package vhdx

// Barriers names every sync and ordering rule that Omit can leave out.
func Barriers() []string { return barrierNames[:] }

// Omit makes o leave out the named barriers.
func (o OpenOptions) Omit(names ...string) OpenOptions {
	for _, name := range names {
		for b, n := range barrierNames {
			if n == name {
				o.omit |= 1 << b
			}
		}
	}
	return o
}
