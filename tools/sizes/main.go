// Command sizes notes the files and functions that have grown long: files over
// 400 lines, functions over 60. It is a reminder and never fails; the hard
// limits (600 and 100) are the linter's.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	longFile = 400
	longFunc = 60
)

func main() {
	if err := filepath.WalkDir(".", visit); err != nil {
		fmt.Fprintln(os.Stderr, "sizes:", err)
		os.Exit(1)
	}
}

func visit(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if d.IsDir() {
		if n := d.Name(); path != "." && (strings.HasPrefix(n, ".") || n == "bin" || n == "testdata") {
			return fs.SkipDir
		}
		return nil
	}
	if !strings.HasSuffix(path, ".go") {
		return nil
	}
	return note(path)
}

func note(path string) error {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if n := fset.Position(file.FileEnd).Line; n > longFile {
		fmt.Printf("note: %s has %d lines, more than %d\n", path, n, longFile)
	}
	if strings.HasSuffix(path, "_test.go") {
		return nil // a table of cases may be long
	}
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		from, to := fset.Position(f.Pos()).Line, fset.Position(f.End()).Line
		if n := to - from + 1; n > longFunc {
			fmt.Printf("note: %s:%d: func %s has %d lines, more than %d\n", path, from, f.Name.Name, n, longFunc)
		}
	}
	return nil
}
