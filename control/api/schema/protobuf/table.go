package main

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const header = `# How Kubernetes 1.36 writes its API types in protobuf, made by control/api/schema/protobuf (go run . table).
#
#     @PACKAGE                     the types below belong to it
#     TYPE [GROUP/VERSION/KIND ...]
#      NUMBER NAME SHAPE [*] [!]
#
# NAME is the field's name in JSON; it is - for a message whose fields JSON has in the object around it. SHAPE is
# as in types.txt, with quantity, int-or-string, time, microtime, json (a message with JSON text in it) and items (a
# message with a list of text in it) for the types that write themselves. A field with * is a pointer in Go: it is
# written only where it is set, then also with an empty value. One with ! is in Go's JSON even if it is empty.
`

var special = map[reflect.Type]string{
	reflect.TypeOf(metav1.Time{}):          "time",
	reflect.TypeOf(metav1.MicroTime{}):     "microtime",
	reflect.TypeOf(metav1.FieldsV1{}):      "json",
	reflect.TypeOf(resource.Quantity{}):    "quantity",
	reflect.TypeOf(intstr.IntOrString{}):   "int-or-string",
	reflect.TypeOf(runtime.RawExtension{}): "json",
}

func home(typ reflect.Type) string {
	path := typ.PkgPath()
	for _, prefix := range []string{"k8s.io/api/", "k8s.io/apimachinery/pkg/apis/", "k8s.io/apimachinery/pkg/"} {
		path = strings.TrimPrefix(path, prefix)
	}
	return strings.ReplaceAll(path, "/", ".")
}

// The shape of a field's type. What it is made of goes to found.
func shape(typ reflect.Type, around string, found func(reflect.Type)) string {
	if name := special[typ]; name != "" {
		return name
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return shape(typ.Elem(), around, found)
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int32:
		return "int32"
	case reflect.Int64:
		return "int64"
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		if _, own := reflect.PointerTo(typ).MethodByName("Unmarshal"); own {
			return "items"
		}
		return "[]" + shape(typ.Elem(), around, found)
	case reflect.Map:
		return "{}" + shape(typ.Elem(), around, found)
	case reflect.Struct:
		found(typ)
		if home(typ) == around {
			return typ.Name()
		}
		return home(typ) + "." + typ.Name()
	}
	panic("no shape for " + typ.String())
}

type line struct {
	number int
	text   string
}

func fields(typ reflect.Type, found func(reflect.Type)) []line {
	var lines []line
	for i := range typ.NumField() {
		field := typ.Field(i)
		tag := strings.Split(field.Tag.Get("protobuf"), ",")
		if len(tag) < 2 {
			continue
		}
		number, err := strconv.Atoi(tag[1])
		if err != nil {
			panic(err)
		}
		json := strings.Split(field.Tag.Get("json"), ",")
		name, options := json[0], json[1:]
		if slices.Contains(options, "inline") || name == "" && field.Anonymous {
			name = "-"
		}
		if name == "" {
			panic(typ.String() + "." + field.Name + " has no name")
		}
		text := fmt.Sprintf(" %d %s %s", number, name, shape(field.Type, home(typ), found))
		pointer := field.Type.Kind() == reflect.Pointer
		if pointer {
			text += " *"
		}
		omitted := slices.Contains(options, "omitzero")
		if slices.Contains(options, "omitempty") && field.Type.Kind() != reflect.Struct {
			omitted = true
		}
		if name == "-" {
			if pointer {
				panic(typ.String() + "." + field.Name + " may be absent and has no name")
			}
		} else if !omitted {
			text += " !"
		}
		lines = append(lines, line{number, text})
	}
	slices.SortFunc(lines, func(a, b line) int { return a.number - b.number })
	return lines
}

func table(kinds []kind) {
	words := map[reflect.Type][]string{}
	all := map[reflect.Type][]line{}
	var waiting []reflect.Type
	found := func(typ reflect.Type) {
		if _, known := all[typ]; !known {
			all[typ] = nil
			waiting = append(waiting, typ)
		}
	}
	for _, kind := range kinds {
		words[kind.typ] = append(words[kind.typ], kind.name)
		found(kind.typ)
	}
	for len(waiting) > 0 {
		typ := waiting[0]
		waiting = waiting[1:]
		all[typ] = fields(typ, found)
	}
	var types []reflect.Type
	for typ := range all {
		types = append(types, typ)
	}
	slices.SortFunc(types, func(a, b reflect.Type) int {
		return strings.Compare(home(a)+"."+a.Name(), home(b)+"."+b.Name())
	})
	fmt.Print(header)
	around := ""
	for _, typ := range types {
		if home(typ) != around {
			around = home(typ)
			fmt.Println("@" + around)
		}
		fmt.Println(strings.Join(append([]string{typ.Name()}, words[typ]...), " "))
		for _, line := range all[typ] {
			fmt.Println(line.text)
		}
	}
}
