package main

import (
	"context"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far a long work is, on a terminal alone, and ends the work
// when the user does.
type progress struct {
	ctx  context.Context
	what string
	w    *os.File // nil: nothing is shown
	bar  *progressbar.ProgressBar
}

func (a *app) progress(ctx context.Context, quiet bool, what string) *progress {
	p := &progress{ctx: ctx, what: what}
	if f, ok := a.errOut.(*os.File); ok && !quiet && !a.json && term.IsTerminal(int(f.Fd())) {
		p.w = f
	}
	return p
}

// report implements vhdx.CreateOptions.Progress.
func (p *progress) report(done, total int64) error {
	if p.w != nil && p.bar == nil {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.w),
			progressbar.OptionSetDescription(p.what),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionFullWidth(),
		)
	}
	if p.bar != nil {
		_ = p.bar.Set64(done) // a terminal that is gone is no reason to stop
	}
	return context.Cause(p.ctx)
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear() // as above
	}
}
