package vhdx

// Barriers names every sync and ordering rule whose absence a power cut shows.
func Barriers() []string { return barrierNames[:powerBarriers] }

// JournalRules names those that the death of the process alone shows.
func JournalRules() []string { return barrierNames[powerBarriers:repairBarriers] }

// RepairBarriers names those that only a power cut in a repair shows.
func RepairBarriers() []string { return barrierNames[repairBarriers:] }

// Omit makes o leave out the named barriers.
func (o RepairOptions) Omit(names ...string) RepairOptions {
	o.omit = OpenOptions{}.Omit(names...).omit
	return o
}

// NoTimers makes nothing happen but on a call.
func (o OpenOptions) NoTimers() OpenOptions {
	o.noTimers = true
	return o
}

// NoAhead makes the file grow only when a request waits for it.
func (o OpenOptions) NoAhead() OpenOptions {
	o.noAhead = true
	return o
}

// MaxCopied makes a flush of a child copy so many pages of the table at once.
func (o OpenOptions) MaxCopied(pages int) OpenOptions {
	o.maxCopied = pages
	return o
}

// Idle waits for what goes on behind the calls. Nobody may call im meanwhile.
func (im *Image) Idle() { im.background.Wait() }

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

// Like makes a merge leave out what an open with these options does.
func (o MergeOptions) Like(open OpenOptions) MergeOptions {
	o.omit, o.noTimers = open.omit, open.noTimers
	return o
}

// Step makes a collapse mark its progress every n bytes.
func (o CollapseOptions) Step(n int64) CollapseOptions {
	o.step = n
	return o
}
