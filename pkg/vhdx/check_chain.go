package vhdx

import (
	"errors"
	"fmt"
)

// checkChain opens what the image is a child of, and so on down: each link must
// lead to the image that it was made for.
func (c *checker) checkChain() error {
	if !c.meta.params.HasParent {
		return nil
	}
	p := at("Parent Locator", c.locatorAt)
	switch {
	case c.locator == nil || c.locator.Check() != nil:
		return nil // told already
	case c.o.Parents == nil:
		c.note(CodeParent, p, "its parent was not looked for")
		return nil
	}
	child := &Image{
		f: c.raw, name: c.r.File, headers: c.im.headers, metadata: c.meta,
		opts: OpenOptions{ReadOnly: true, Parents: c.o.Parents},
	}
	child.metadata.locator = *c.locator
	ref, err := child.openParent()
	if err == nil {
		c.r.Depth = 1 + len(newChain(ref).layers)
		if c.geometry.VirtualSize < ref.im.size.Load() {
			c.note(CodeParent, p, "the disk is smaller than its parent's, %#x bytes, which it cuts", ref.im.size.Load())
		}
		return parents.release(ref)
	}
	return c.brokenChain(p, err)
}

// brokenChain tells why a chain does not open.
func (c *checker) brokenChain(p Place, err error) error {
	f := Finding{Code: CodeParent, Severity: SeverityCorrupt, Place: p, Text: err.Error()}
	link, isLink := errors.AsType[*ParentError](err)
	if isLink {
		f.Text = fmt.Sprintf("parent of %s: %v", link.Child, link.Err)
		if len(link.Tried) > 0 {
			f.Text += fmt.Sprintf("; tried %q", link.Tried)
		}
	}
	switch {
	case errors.Is(err, ErrParentMissing):
		f.Advice = "put the parent where the locator looks for it"
	case errors.Is(err, ErrParentMismatch):
		f.Advice = "the image is of no use without its parent as it was: " + restore + ", the parent or both"
	case errors.Is(err, ErrParentRefused):
		f.Advice = "if the parents may be trusted, say where they may be"
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrUnsupported), errors.Is(err, ErrNotVHDX):
		f.Advice = "check the parent"
	case errors.Is(err, ErrInUse):
		return err
	case !isLink:
		return err
	}
	c.add(f)
	return nil
}
