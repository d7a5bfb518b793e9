// Package lease decides who may write an image.
package lease
