"""The statements the method rests on, each as a function that checks it numerically and returns a record."""
